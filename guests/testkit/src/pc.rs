//! Child domains that are PCs: each vCPU carries out a script of operations on its interrupt controllers, which say themselves what
//! they must give.
//!
//! Their memory goes on where that of other children ends:
//!
//! | page | what it holds |
//! |---|---|
//! | [`IDT`] | gates of the vectors 2, 13, and 32 to 255 |
//! | [`STUBS`] | handlers |
//! | [`REAL`], [`REAL_2`] | pages for start-up messages |
//! | [`TOLD`] | for each vCPU: how often each vector came, and in which order |
//! | [`SCRIPTS`] | for each vCPU its script |
//!
//! R14 holds the address of the vCPU's page at [`TOLD`], RBX its place in its script, R13 whether the operation made a general
//! protection fault: its handler says so and goes on behind the instruction, which is one of two bytes.

use core::ops::{Deref, DerefMut};

use plinth_rt::abi::Call;
use plinth_rt::abi::domain::platform;
use plinth_rt::object::bytes_of;
use plinth_rt::{Outcome, Snippet, Why, check, snippet};

use crate::child::{Child, DATA, PAGE, Plan, TABLE, bytes};
use crate::kit::{Must, until};

/// Where the gates are.
pub const IDT: u64 = 0x4000;
/// Where the handlers are.
pub const STUBS: u64 = 0x5000;
/// A page for a start-up message.
pub const REAL: u64 = 0x6000;
/// Another.
pub const REAL_2: u64 = 0x7000;
/// What the handlers tell, a page for each vCPU.
pub const TOLD: u64 = 0x8000;
/// The scripts, a page for each vCPU.
pub const SCRIPTS: u64 = 0xb000;
/// Pages of such a child.
const PAGES: u64 = 14;

/// The linear address of the local APIC's registers.
pub const LOCAL_APIC: u64 = 0x1f_e000;
/// The linear address of the I/O APIC's registers.
pub const IO_APIC: u64 = 0x1f_f000;
/// The physical addresses behind both.
pub const LOCAL_APIC_GPA: u64 = 0xfee0_0000;
/// As above.
pub const IO_APIC_GPA: u64 = 0xfec0_0000;

/// Parts of the page of handlers.
const INTERRUPT: u64 = STUBS + 0x800;
const PROTECTION: u64 = STUBS + 0xa00;
const NMI: u64 = STUBS + 0xb00;

/// The vector of NMIs, and that of general protection faults.
pub const NMI_VECTOR: u8 = 2;
const GP_VECTOR: u8 = 13;

/// Bytes of an operation.
const OP: u64 = 64;
/// Most operations of a script.
const OPS: usize = 64;

/// How often the vector came to the vCPU.
pub const fn counter(vcpu: usize, vector: u8) -> u64 {
    TOLD + vcpu as u64 * PAGE + vector as u64 * 8
}

/// How many interrupts came to the vCPU.
pub const fn interrupts(vcpu: usize) -> u64 {
    TOLD + vcpu as u64 * PAGE + 0x800
}

/// The vectors of its interrupts, a byte each, in the order in which they came.
pub const fn order(vcpu: usize) -> u64 {
    TOLD + vcpu as u64 * PAGE + 0x808
}

/// The TSC when its last interrupt came.
pub const fn when(vcpu: usize) -> u64 {
    TOLD + vcpu as u64 * PAGE + 0xf00
}

/// How its handlers end an interrupt: [`Ending`].
pub const fn ending(vcpu: usize) -> u64 {
    TOLD + vcpu as u64 * PAGE + 0xf08
}

/// The word by which it may end an interrupt without a write to its local APIC ([`Ending::Word`]).
pub const fn word(vcpu: usize) -> u64 {
    TOLD + vcpu as u64 * PAGE + 0xf10
}

/// How many interrupts it has ended by that.
pub const fn ended_by_word(vcpu: usize) -> u64 {
    TOLD + vcpu as u64 * PAGE + 0xf18
}

/// How handlers end an interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// By the MSR.
    Msr = 0,
    /// By the register in memory.
    Memory = 1,
    /// The script does.
    Script = 2,
    /// By clearing bit 0 of [`word`], if it is set; else by the MSR.
    Word = 3,
}

/// A word in which the suite tells a script something, or two scripts each other.
pub const fn cell(number: u64) -> u64 {
    DATA + 8 * number
}

/// An operation, and what it must give.
#[derive(Clone, Copy)]
pub struct Op {
    words: [u64; 3],
    gives: Option<(u64, u64)>,
    faults: bool,
}

impl Op {
    const fn new(kind: u64, a: u64, b: u64) -> Self {
        Self {
            words: [kind, a, b],
            gives: None,
            faults: false,
        }
    }

    /// Its value must be this.
    pub const fn gives(self, value: u64) -> Self {
        self.gives_in(u64::MAX, value)
    }

    /// Its value must be this in the bits of the mask.
    pub const fn gives_in(self, mask: u64, value: u64) -> Self {
        Self {
            gives: Some((mask, value)),
            ..self
        }
    }

    /// It must make a general protection fault.
    pub const fn faults(self) -> Self {
        Self {
            faults: true,
            ..self
        }
    }
}

/// Ends the domain.
pub const fn end() -> Op {
    Op::new(0, 0, 0)
}

/// WRMSR.
pub const fn wrmsr(msr: u32, value: u64) -> Op {
    Op::new(1, msr as u64, value)
}

/// RDMSR.
pub const fn rdmsr(msr: u32) -> Op {
    Op::new(2, msr as u64, 0)
}

/// WRMSR of a moment that is so many ticks of the TSC away; its value is the moment.
pub const fn wrmsr_in(msr: u32, ticks: u64) -> Op {
    Op::new(3, msr as u64, ticks)
}

/// A MOV of so many bytes to memory.
pub const fn write(size: u64, address: u64, value: u64) -> Op {
    Op::new(4 + size.trailing_zeros() as u64, address, value)
}

/// A MOV of so many bytes from memory.
pub const fn read(size: u64, address: u64) -> Op {
    Op::new(8 + size.trailing_zeros() as u64, address, 0)
}

/// Sets a word.
pub const fn put(address: u64, value: u64) -> Op {
    write(8, address, value)
}

/// Reads a word.
pub const fn get(address: u64) -> Op {
    read(8, address)
}

/// OR of four bytes of memory.
pub const fn or(address: u64, value: u64) -> Op {
    Op::new(12, address, value)
}

/// STI, and one instruction more.
pub const fn sti() -> Op {
    Op::new(13, 0, 0)
}

/// CLI.
pub const fn cli() -> Op {
    Op::new(14, 0, 0)
}

/// HLT, with RFLAGS.IF as it is.
pub const fn hlt() -> Op {
    Op::new(15, 0, 0)
}

/// STI and HLT.
pub const fn sti_hlt() -> Op {
    Op::new(16, 0, 0)
}

/// Waits, and does not halt, until a word is at least this.
pub const fn spin_until(address: u64, value: u64) -> Op {
    Op::new(17, address, value)
}

/// Halts until a word is at least this. RFLAGS.IF is clear afterwards.
pub const fn halt_until(address: u64, value: u64) -> Op {
    Op::new(18, address, value)
}

/// MOV to CR8.
pub const fn set_cr8(value: u64) -> Op {
    Op::new(19, value, 0)
}

/// MOV from CR8.
pub const fn cr8() -> Op {
    Op::new(20, 0, 0)
}

/// RDTSC.
pub const fn tsc() -> Op {
    Op::new(21, 0, 0)
}

/// Lets so many ticks of the TSC go by.
pub const fn delay(ticks: u64) -> Op {
    Op::new(22, ticks, 0)
}

/// CPUID; the register with this number: EAX, EBX, ECX, EDX.
pub const fn cpuid(leaf: u32, register: u64) -> Op {
    Op::new(23, leaf as u64, register)
}

/// A hypercall; its value is the call's, which must succeed for that.
pub const fn call(call: Call, argument: u64) -> Op {
    Op::new(24, call.0, argument)
}

/// Halts for ever, with interrupts on.
pub const fn idle() -> Op {
    Op::new(25, 0, 0)
}

/// Spins for ever.
pub const fn spin() -> Op {
    Op::new(26, 0, 0)
}

/// Goes so many operations back, until it has been come to so many times.
pub const fn again(ops: u64, times: u64) -> Op {
    Op::new(27, ops, times)
}

/// Halts until a word is above another, and then adds one to that: takes one of those that the first counts.
pub const fn take(counter: u64, taken: u64) -> Op {
    Op::new(28, counter, taken)
}

/// RDMSR again and again, until it gives this.
pub const fn rdmsr_until(msr: u32, value: u64) -> Op {
    Op::new(29, msr as u64, value)
}

/// The code that carries scripts out.
fn interpreter() -> Snippet {
    snippet!(
        "2:",
        "xor r13d, r13d",
        "mov rsi, [rbx + 8]",
        "mov rdi, [rbx + 16]",
        "mov rcx, [rbx]",
        "lea rax, [rip + 3f]",
        "movsxd rcx, dword ptr [rax + rcx * 4]",
        "add rax, rcx",
        "jmp rax",
        "3:",
        ".long 20f - 3b, 21f - 3b, 22f - 3b, 23f - 3b, 24f - 3b, 25f - 3b, 26f - 3b, 27f - 3b, 28f - 3b",
        ".long 29f - 3b, 30f - 3b, 31f - 3b, 32f - 3b, 33f - 3b, 34f - 3b, 35f - 3b, 36f - 3b, 37f - 3b",
        ".long 38f - 3b, 39f - 3b, 40f - 3b, 42f - 3b, 43f - 3b, 45f - 3b, 46f - 3b, 47f - 3b, 48f - 3b",
        ".long 49f - 3b, 50f - 3b, 51f - 3b",
        "4:",
        "mov [rbx + 24], rax",
        "mov [rbx + 32], r13",
        "mov qword ptr [rbx + 40], 1",
        "add rbx, 64",
        "jmp 2b",
        // END: a moment later, when another vCPU has noted as done what this one has seen already. In QEMU, where CPUs take turns, it is the
        // PAUSE that gives the other its turn, and a long one; in Bochs a few instructions are a turn.
        "20: pause",
        "mov ecx, 1000",
        "8: dec ecx",
        "jnz 8b",
        "mov eax, 4",
        "mov rdi, rsi",
        "call r15",
        // WRMSR, RDMSR, WRMSR of a moment.
        "21: mov rdx, rdi",
        "5: mov eax, edi",
        "mov ecx, esi",
        "shr rdx, 32",
        "wrmsr",
        "mov rax, rdi",
        "jmp 4b",
        "22: mov ecx, esi",
        "xor eax, eax",
        "xor edx, edx",
        "rdmsr",
        "6: shl rdx, 32",
        "or rax, rdx",
        "jmp 4b",
        "23: rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "add rdi, rax",
        "mov rdx, rdi",
        "jmp 5b",
        // Writes, reads, OR.
        "24: mov [rsi], dil",
        "jmp 4b",
        "25: mov [rsi], di",
        "jmp 4b",
        "26: mov [rsi], edi",
        "jmp 4b",
        "27: mov [rsi], rdi",
        "jmp 4b",
        "28: xor eax, eax",
        "mov al, [rsi]",
        "jmp 4b",
        "29: xor eax, eax",
        "mov ax, [rsi]",
        "jmp 4b",
        "30: mov eax, [rsi]",
        "jmp 4b",
        "31: mov rax, [rsi]",
        "jmp 4b",
        "32: or dword ptr [rsi], edi",
        "jmp 4b",
        // STI, CLI, HLT, STI and HLT.
        "33: sti",
        "nop",
        "jmp 4b",
        "34: cli",
        "jmp 4b",
        "35: hlt",
        "jmp 4b",
        "36: sti",
        "hlt",
        "jmp 4b",
        // Waits for a word, awake and halted.
        "37: pause",
        "cmp [rsi], rdi",
        "jb 37b",
        "jmp 4b",
        "38: cli",
        "cmp [rsi], rdi",
        "jae 4b",
        "sti",
        "hlt",
        "jmp 38b",
        // CR8.
        "39: mov cr8, rsi",
        "jmp 4b",
        "40: mov rax, cr8",
        "jmp 4b",
        // The TSC.
        "42: rdtsc",
        "jmp 6b",
        "43: rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "add rsi, rax",
        "44: rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "cmp rax, rsi",
        "jb 44b",
        "jmp 4b",
        // CPUID.
        "45: push rbx",
        "mov eax, esi",
        "xor ecx, ecx",
        "cpuid",
        "push rdx",
        "push rcx",
        "push rbx",
        "push rax",
        "mov rax, [rsp + rdi * 8]",
        "add rsp, 32",
        "pop rbx",
        "jmp 4b",
        // A call: its status in bits 63:56 of the value.
        "46: mov rax, rsi",
        "call r15",
        "shl rax, 56",
        "or rax, rdx",
        "jmp 4b",
        // For ever.
        "47: sti",
        "hlt",
        "jmp 47b",
        "48: jmp 48b",
        // Back by some operations.
        "49: inc qword ptr [rbx + 48]",
        "cmp [rbx + 48], rdi",
        "jae 4b",
        "shl rsi, 6",
        "sub rbx, rsi",
        "jmp 2b",
        // Waits for more than there were.
        "50: cli",
        "mov rax, [rdi]",
        "cmp [rsi], rax",
        "ja 7f",
        "sti",
        "hlt",
        "jmp 50b",
        "7: inc qword ptr [rdi]",
        "jmp 4b",
        // RDMSR until it gives a value.
        "51: mov ecx, esi",
        "rdmsr",
        "shl rdx, 32",
        "or rax, rdx",
        "cmp rax, rdi",
        "jne 51b",
        "jmp 4b",
    )
}

/// Counts the vector on the stack, notes it and the time, and ends the interrupt.
fn interrupt() -> Snippet {
    snippet!(
        "push rax",
        "push rcx",
        "push rdx",
        "movzx eax, byte ptr [rsp + 24]",
        "inc qword ptr [r14 + rax * 8]",
        "mov ecx, [r14 + 0x800]",
        "and ecx, 0x3ff",
        "mov [r14 + rcx + 0x808], al",
        "inc qword ptr [r14 + 0x800]",
        "rdtsc",
        "mov [r14 + 0xf00], eax",
        "mov [r14 + 0xf04], edx",
        "cmp dword ptr [r14 + 0xf08], 2",
        "je 3f",
        "ja 5f",
        "cmp dword ptr [r14 + 0xf08], 1",
        "je 2f",
        "4: mov ecx, 0x80b",
        "xor eax, eax",
        "xor edx, edx",
        "wrmsr",
        "jmp 3f",
        "5: btr dword ptr [r14 + 0xf10], 0",
        "jnc 4b",
        "inc qword ptr [r14 + 0xf18]",
        "jmp 3f",
        "2: mov dword ptr [0x1fe0b0], 0",
        "3: pop rdx",
        "pop rcx",
        "pop rax",
        "add rsp, 8",
        "iretq",
    )
}

/// A general protection fault: above the vector is its error code.
fn protection() -> Snippet {
    snippet!(
        "mov r13d, 1",
        "inc qword ptr [r14 + 104]",
        "add qword ptr [rsp + 16], 2",
        "add rsp, 16",
        "iretq",
    )
}

fn nmi() -> Snippet {
    snippet!("inc qword ptr [r14 + 16]", "add rsp, 8", "iretq")
}

/// A child that is a PC.
pub struct Pc(Child);

impl Deref for Pc {
    type Target = Child;

    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Pc {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Pc {
    /// What it is made of: with so many vCPUs that are in long mode when they start, and wait for no start-up message.
    pub fn plan(vcpus: u32) -> Plan {
        Plan {
            vcpus,
            pages: PAGES,
            platform: platform::PC,
            ..Plan::new(interpreter())
        }
    }

    /// Makes one.
    pub fn new(plan: &Plan) -> Result<Self, Why> {
        let pc = Self(Child::new(plan)?);
        for (entry, gpa) in [(LOCAL_APIC, LOCAL_APIC_GPA), (IO_APIC, IO_APIC_GPA)] {
            pc.set_word(TABLE + entry / PAGE * 8, gpa | 3)?;
        }
        let mut gates = [[0u64; 2]; 256];
        let mut stubs = [[0u8; 8]; 256];
        for (vector, (gate, stub)) in (0u8..=255).zip(gates.iter_mut().zip(&mut stubs)) {
            let handler = match vector {
                NMI_VECTOR => NMI,
                GP_VECTOR => PROTECTION,
                32.. => INTERRUPT,
                _ => continue,
            };
            let at = STUBS + u64::from(vector) * 8;
            // An interrupt gate to selector 8 (SDM vol. 3 figure 7-8). The address is below 64 KiB.
            gate[0] = at | 8 << 16 | 0x8e << 40;
            // push VECTOR; jmp HANDLER
            let [a, b, c, d] = ((handler - (at + 7)) as u32).to_le_bytes();
            *stub = [0x6a, vector, 0xe9, a, b, c, d, 0];
        }
        pc.write(IDT, bytes_of(&gates))?;
        pc.write(STUBS, bytes_of(&stubs))?;
        for (at, code) in [
            (INTERRUPT, interrupt()),
            (PROTECTION, protection()),
            (NMI, nmi()),
        ] {
            pc.write(at, bytes(&code))?;
        }
        for index in 0..plan.vcpus as usize {
            pc.set(index, |state| {
                state.idtr.base = IDT;
                state.idtr.limit = 256 * 16 - 1;
                state.r14 = TOLD + index as u64 * PAGE;
                state.rbx = script(index);
            })?;
        }
        Ok(pc)
    }

    /// One vCPU each for these scripts, started.
    pub fn running(scripts: &[&[Op]]) -> Result<Self, Why> {
        let pc = Self::new(&Self::plan(scripts.len() as u32))?;
        for (vcpu, ops) in scripts.iter().enumerate() {
            pc.load(vcpu, ops)?;
        }
        pc.start()?;
        Ok(pc)
    }

    /// The child, for what needs no more of it.
    pub fn into_child(self) -> Child {
        self.0
    }

    /// Gives a vCPU its script.
    pub fn load(&self, vcpu: usize, ops: &[Op]) -> Outcome {
        check!(ops.len() <= OPS, "too many operations");
        let mut words = [[0u64; (OP / 8) as usize]; OPS];
        for (place, op) in words.iter_mut().zip(ops) {
            place[..3].copy_from_slice(&op.words);
        }
        self.write(script(vcpu), bytes_of(&words))
    }

    /// Puts 16-bit code into a page for start-up messages.
    pub fn put_code(&self, page: u64, code: &Snippet) -> Outcome {
        self.write(page, bytes(code))
    }

    /// What an operation gave, which must have been done.
    pub fn value(&self, vcpu: usize, op: usize) -> Result<u64, Why> {
        let [value, _, done] = answer(self, vcpu, op)?;
        check!(done == 1, "vCPU {vcpu} has not come to operation {op}");
        Ok(value)
    }

    /// As [`until_done`].
    pub fn until_done(&self, vcpu: usize, op: usize) -> Outcome {
        until_done(self, vcpu, op)
    }

    /// As [`gave`].
    pub fn gave(&self, vcpu: usize, ops: &[Op]) -> Outcome {
        gave(self, vcpu, ops)
    }

    /// As [`gave_at`].
    pub fn gave_at(&self, vcpu: usize, index: usize, op: &Op) -> Outcome {
        gave_at(self, vcpu, index, op)
    }

    /// The first interrupts of a vCPU must have had these vectors, and there were no more.
    pub fn took(&self, vcpu: usize, vectors: &[u8]) -> Outcome {
        let mut seen = [0; 16];
        let count = self.word(interrupts(vcpu))? as usize;
        let seen = seen.get_mut(..count.min(16)).unwrap_or_default();
        self.domain.read(order(vcpu), seen).must("read")?;
        check!(seen == vectors, "vectors {seen:x?}, expected {vectors:x?}");
        Ok(())
    }
}

fn answer(child: &Child, vcpu: usize, op: usize) -> Result<[u64; 3], Why> {
    let at = script(vcpu) + op as u64 * OP + 24;
    Ok([child.word(at)?, child.word(at + 8)?, child.word(at + 16)?])
}

/// Waits until a vCPU's operation is done.
pub fn until_done(child: &Child, vcpu: usize, op: usize) -> Outcome {
    until("an operation of a script", || {
        Ok(answer(child, vcpu, op)?[2] == 1)
    })
}

/// Each operation of a vCPU before the last, or before the first that ends the domain, must have been done, and have given what it
/// must.
pub fn gave(child: &Child, vcpu: usize, ops: &[Op]) -> Outcome {
    for (index, op) in ops.iter().enumerate() {
        if op.words[0] == 0 || index + 1 == ops.len() {
            break;
        }
        gave_at(child, vcpu, index, op)?;
    }
    Ok(())
}

/// The operation at this place must have been done, and have given what it must.
pub fn gave_at(child: &Child, vcpu: usize, index: usize, op: &Op) -> Outcome {
    let [value, faulted, done] = answer(child, vcpu, index)?;
    let what = &op.words;
    check!(
        done == 1,
        "vCPU {vcpu} has not come to operation {index}, {what:x?}"
    );
    check!(
        (faulted != 0) == op.faults,
        "vCPU {vcpu}, operation {index}, {what:x?}: {faulted} faults"
    );
    let Some((mask, expected)) = op.gives else {
        return Ok(());
    };
    check!(
        value & mask == expected,
        "vCPU {vcpu}, operation {index}, {what:x?}: {value:#x}, expected {expected:#x} in {mask:#x}"
    );
    Ok(())
}

/// Runs the scripts, of which the first ends the domain; all that their operations gave must be as they say.
pub fn gives(scripts: &[&[Op]]) -> Result<Pc, Why> {
    let pc = Pc::running(scripts)?;
    pc.ends_with(0)?;
    for (vcpu, ops) in scripts.iter().enumerate() {
        pc.gave(vcpu, ops)?;
    }
    Ok(pc)
}

const fn script(vcpu: usize) -> u64 {
    SCRIPTS + vcpu as u64 * PAGE
}
