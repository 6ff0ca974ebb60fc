//! Tests of [`super`] against the CPU that runs them: the assembler encodes an instruction, the CPU executes it on ordinary
//! memory, and what is emulated must leave the same registers, flags and memory. What only other modes have is compared with the
//! manual by hand.

#![allow(unsafe_code, reason = "executes the instructions under test")]

use core::arch::asm;

use proptest::prelude::*;

use super::*;
use crate::decode::{Mode, decode};
use crate::virt::gprs::Gprs;

/// Bytes of each of the two areas that instructions work on: RSI and RDI point into the middle.
const AREA: usize = 64;
const MIDDLE: u64 = AREA as u64 / 2;

/// The registers of an instruction that is emulated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Held {
    gprs: Gprs,
    rsp: u64,
    rip: u64,
    rflags: u64,
}

impl Registers for Held {
    fn get(&self, number: u8) -> u64 {
        match number {
            4 => self.rsp,
            _ => self.gprs.get(number),
        }
    }

    fn set(&mut self, number: u8, value: u64) {
        match number {
            4 => self.rsp = value,
            _ => self.gprs.set(number, value),
        }
    }

    fn rip(&self) -> u64 {
        self.rip
    }

    fn rflags(&self) -> u64 {
        self.rflags
    }

    fn set_rflags(&mut self, value: u64) {
        self.rflags = value;
    }
}

/// What an instruction starts from, or leaves.
#[derive(Clone, PartialEq, Eq, Debug)]
struct State {
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    r8: u64,
    r9: u64,
    rflags: u64,
}

/// An instruction, and what executes it.
struct Form {
    text: &'static str,
    /// Executes it; its encoding.
    execute: fn(&mut State) -> &'static [u8],
}

/// Forms with their text.
macro_rules! forms {
    ($($text:expr),+ $(,)?) => {
        vec![$(Form {
            text: $text,
            execute: {
                fn execute(state: &mut State) -> &'static [u8] {
                    let (start, end): (*const u8, *const u8);
                    // SAFETY: the instruction uses no other registers than those declared here, and RBX, which is put back;
                    // its memory is that of RSI and RDI, which point to areas that it stays in.
                    unsafe {
                        asm!(
                            "xchg rbx, {rbx}",
                            "push {rflags}",
                            "popfq",
                            "2:",
                            $text,
                            "3:",
                            "pushfq",
                            "pop {rflags}",
                            "cld",
                            "xchg rbx, {rbx}",
                            "lea {start}, [rip + 2b]",
                            "lea {end}, [rip + 3b]",
                            rbx = inout(reg) state.rbx,
                            rflags = inout(reg) state.rflags,
                            start = out(reg) start,
                            end = out(reg) end,
                            inout("rax") state.rax,
                            inout("rcx") state.rcx,
                            inout("rdx") state.rdx,
                            inout("rsi") state.rsi,
                            inout("rdi") state.rdi,
                            inout("r8") state.r8,
                            inout("r9") state.r9,
                        );
                        core::slice::from_raw_parts(start, end.offset_from_unsigned(start))
                    }
                }
                execute
            },
        }),+]
    };
}

/// The forms of an arithmetic instruction.
macro_rules! arithmetic {
    ($($name:literal),+) => {
        [$(forms!(
            concat!($name, " byte ptr [rsi], al"),
            concat!($name, " byte ptr [rsi], ch"),
            concat!($name, " word ptr [rsi], dx"),
            concat!($name, " dword ptr [rsi], r8d"),
            concat!($name, " qword ptr [rsi], rbx"),
            concat!($name, " byte ptr [rsi], 0x85"),
            concat!($name, " word ptr [rsi], 0x8765"),
            concat!($name, " word ptr [rsi], -3"),
            concat!($name, " dword ptr [rsi], 0x7654321"),
            concat!($name, " dword ptr [rsi], -3"),
            concat!($name, " qword ptr [rsi], -0x7654321"),
            concat!($name, " qword ptr [rsi], -3"),
            concat!($name, " bh, byte ptr [rsi]"),
            concat!($name, " r9b, byte ptr [rsi]"),
            concat!($name, " ax, word ptr [rsi]"),
            concat!($name, " edx, dword ptr [rsi]"),
            concat!($name, " r9, qword ptr [rsi]"),
        )),+]
    };
}

fn all_forms() -> Vec<Form> {
    let mut forms = forms!(
        "mov byte ptr [rsi], al",
        "mov byte ptr [rsi], ah",
        "mov byte ptr [rsi], bh",
        "mov byte ptr [rsi], ch",
        "mov byte ptr [rsi], dh",
        "mov byte ptr [rsi], sil",
        "mov byte ptr [rsi], r8b",
        "mov word ptr [rsi], cx",
        "mov word ptr [rsi], r9w",
        "mov dword ptr [rsi], ebx",
        "mov dword ptr [rsi + 8], r9d",
        "mov qword ptr [rsi], rdx",
        "mov qword ptr [rdi - 8], r8",
        "mov byte ptr [rsi], 0x85",
        "mov word ptr [rsi], 0x8765",
        "mov dword ptr [rsi], 0x87654321",
        "mov qword ptr [rsi], -2",
        "mov al, byte ptr [rsi]",
        "mov ah, byte ptr [rsi]",
        "mov bh, byte ptr [rsi]",
        "mov ch, byte ptr [rsi]",
        "mov dh, byte ptr [rsi]",
        "mov dil, byte ptr [rsi]",
        "mov r8b, byte ptr [rsi]",
        "mov cx, word ptr [rsi]",
        "mov r9w, word ptr [rsi]",
        "mov ebx, dword ptr [rsi]",
        "mov r9d, dword ptr [rsi]",
        "mov esi, dword ptr [rsi]",
        "mov rdx, qword ptr [rsi]",
        "mov r8, qword ptr [rdi + 8]",
        "movnti dword ptr [rsi], ecx",
        "movnti qword ptr [rsi], r8",
        "movzx ax, byte ptr [rsi]",
        "movzx ebx, byte ptr [rsi]",
        "movzx rcx, byte ptr [rsi]",
        "movzx edx, word ptr [rsi]",
        "movzx r8, word ptr [rsi]",
        "movsx ax, byte ptr [rsi]",
        "movsx ebx, byte ptr [rsi]",
        "movsx rcx, byte ptr [rsi]",
        "movsx edx, word ptr [rsi]",
        "movsx r8, word ptr [rsi]",
        "movsxd r9, dword ptr [rsi]",
        "xchg byte ptr [rsi], al",
        "xchg byte ptr [rsi], bh",
        "xchg word ptr [rsi], cx",
        "xchg dword ptr [rsi], r8d",
        "xchg qword ptr [rsi], rdx",
        "xchg dword ptr [rsi], esi",
        "lock add dword ptr [rsi], eax",
        "test byte ptr [rsi], ah",
        "test word ptr [rsi], bx",
        "test dword ptr [rsi], ecx",
        "test qword ptr [rsi], r8",
        "test byte ptr [rsi], 0x85",
        "test word ptr [rsi], 0x8765",
        "test dword ptr [rsi], 0x87654321",
        "test qword ptr [rsi], -2",
        "stosb",
        "stosw",
        "stosd",
        "stosq",
        "rep stosb",
        "rep stosw",
        "rep stosd",
        "rep stosq",
        "movsb",
        "movsw",
        "movsd",
        "movsq",
        "rep movsb",
        "rep movsw",
        "rep movsd",
        "rep movsq",
        "lodsb",
        "lodsw",
        "lodsd",
        "lodsq",
        "rep lodsb",
        "rep lodsd",
    );
    forms.extend(
        arithmetic!("add", "or", "adc", "sbb", "and", "sub", "xor", "cmp")
            .into_iter()
            .flatten(),
    );
    forms
}

/// Memory for the emulation: bytes from an address on.
struct Emulated {
    areas: [(u64, [u8; AREA]); 2],
}

impl Emulated {
    fn bytes(&mut self, access: &Access) -> &mut [u8] {
        assert!(matches!(access.segment, Segment::Ds | Segment::Es));
        let size = usize::from(access.size);
        self.areas
            .iter_mut()
            .find_map(|(base, bytes)| {
                let at = usize::try_from(access.offset.checked_sub(*base)?).ok()?;
                bytes.get_mut(at..at + size)
            })
            .expect("within an area")
    }

    /// What an access gives, with rubbish beyond its size.
    fn access(&mut self, access: &Access) -> u64 {
        let bytes = self.bytes(access);
        if access.write {
            assert_eq!(access.value & !mask(access.size), 0, "{access:x?}");
            bytes.copy_from_slice(&access.value.to_le_bytes()[..bytes.len()]);
            return u64::MAX;
        }
        assert_eq!(access.value, 0);
        let mut value = [0xa5; 8];
        value[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(value)
    }
}

/// Runs an instruction to its end. Registers must stay as they are until its last step, or that of an element.
fn emulate(instruction: &Instruction, registers: &mut Held, memory: &mut Emulated) {
    loop {
        let before = *registers;
        let mut step = start(instruction, registers).expect("it is emulated");
        loop {
            match step {
                Step::Access(access, wait) => {
                    assert_eq!(*registers, before);
                    let value = memory.access(&access);
                    step = complete(instruction, wait, value, registers);
                }
                Step::Done => return,
                Step::Repeat => break,
            }
        }
    }
}

/// Runs whatever the bytes are with these registers, RFLAGS the last: an element of a string, or another instruction, makes at most
/// two accesses, each of one of the sizes that there are, and no register changes before the last one.
pub fn is_bounded(bytes: &[u8], mode: Mode, values: [u64; 17]) {
    let Ok(instruction) = decode(bytes, mode) else {
        return;
    };
    let mut gprs = Gprs::default();
    for (number, value) in (0..16).zip(values) {
        gprs.set(number, value);
    }
    let mut registers = Held {
        gprs,
        rsp: values[4],
        rip: values[5],
        rflags: values[16],
    };
    for _ in 0..3 {
        let before = registers;
        let Some(mut step) = start(&instruction, &registers) else {
            return;
        };
        let mut accesses = 0;
        while let Step::Access(access, wait) = step {
            assert_eq!(registers, before);
            assert!(matches!(access.size, 1 | 2 | 4 | 8), "{access:x?}");
            assert_eq!(access.value & !mask(access.size), 0, "{access:x?}");
            assert!(access.write || access.value == 0, "{access:x?}");
            accesses += 1;
            assert!(accesses <= 2, "{instruction:x?}");
            step = complete(&instruction, wait, values[accesses], &mut registers);
        }
        assert_eq!(registers.rip, before.rip);
        if step == Step::Done {
            return;
        }
        assert!(instruction.prefixes.repeat.is_some());
    }
}

/// Executes a form and emulates it, from the same state and memory.
fn compare(form: &Form, mut state: State, contents: [[u8; AREA]; 2]) -> Result<(), TestCaseError> {
    let mut areas = contents;
    let [source, destination] = &mut areas;
    let bases = [source.as_mut_ptr() as u64, destination.as_mut_ptr() as u64];
    (state.rsi, state.rdi) = (bases[0] + MIDDLE, bases[1] + MIDDLE);
    if form.text.starts_with("rep") {
        state.rcx &= 3;
    }
    let mut registers = Held {
        gprs: Gprs {
            rax: state.rax,
            rbx: state.rbx,
            rcx: state.rcx,
            rdx: state.rdx,
            rsi: state.rsi,
            rdi: state.rdi,
            r8: state.r8,
            r9: state.r9,
            ..Gprs::default()
        },
        rsp: 0,
        rip: 0,
        rflags: state.rflags,
    };
    let mut memory = Emulated {
        areas: [(bases[0], contents[0]), (bases[1], contents[1])],
    };
    let bytes = (form.execute)(&mut state);
    let instruction = decode(bytes, Mode::Long64).expect("an instruction");
    emulate(&instruction, &mut registers, &mut memory);

    let defined = match instruction.operation {
        Operation::Arithmetic {
            kind: Alu::And | Alu::Or | Alu::Xor,
            ..
        }
        | Operation::Test { .. } => STATUS & !AF,
        _ => STATUS,
    } | DF;
    let gprs = registers.gprs;
    let emulated = State {
        rax: gprs.rax,
        rbx: gprs.rbx,
        rcx: gprs.rcx,
        rdx: gprs.rdx,
        rsi: gprs.rsi,
        rdi: gprs.rdi,
        r8: gprs.r8,
        r9: gprs.r9,
        rflags: registers.rflags & defined,
    };
    state.rflags &= defined;
    prop_assert_eq!(&emulated, &state, "{}", form.text);
    prop_assert_eq!(memory.areas.map(|(_, bytes)| bytes), areas, "{}", form.text);
    Ok(())
}

/// Values at the edges of every size as often as any.
fn value() -> impl Strategy<Value = u64> {
    let edges = [
        0,
        1,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x7fff_ffff_ffff_ffff,
        0x8000_0000_0000_0000,
        u64::MAX,
    ];
    prop_oneof![any::<u64>(), prop::sample::select(edges.to_vec())]
}

fn area() -> impl Strategy<Value = [u8; AREA]> {
    prop::array::uniform8(value()).prop_map(|values| {
        let mut bytes = [0; AREA];
        for (to, value) in bytes.chunks_exact_mut(8).zip(values) {
            to.copy_from_slice(&value.to_le_bytes());
        }
        bytes
    })
}

proptest! {
    #[test]
    fn whatever_it_is_its_accesses_are_bounded(
        bytes: [u8; 15],
        mode in prop::sample::select(vec![Mode::Real16, Mode::Protected32, Mode::Long64]),
        values: [u64; 17],
    ) {
        is_bounded(&bytes, mode, values);
    }

    #[test]
    fn instructions_do_what_the_cpu_does(
        [rax, rbx, rcx, rdx, r8, r9] in prop::array::uniform6(value()),
        flags: u64,
        source in area(),
        destination in area(),
    ) {
        let state = State {
            rax,
            rbx,
            rcx,
            rdx,
            rsi: 0,
            rdi: 0,
            r8,
            r9,
            // Bit 1 is always set, and interrupts are on.
            rflags: flags & (STATUS | DF) | 0x202,
        };
        for form in all_forms() {
            compare(&form, state.clone(), [source, destination])?;
        }
    }
}

/// Registers with a different value in each.
fn registers() -> Held {
    let mut gprs = Gprs::default();
    for number in 0..16 {
        gprs.set(number, 0x1111_1111_0000_0000 * u64::from(number) + 0x1_0000);
    }
    Held {
        gprs,
        rsp: 0x7777_0000,
        rip: 0x40_0000,
        rflags: 2,
    }
}

/// An instruction that waits for an access.
struct Pending {
    instruction: Instruction,
    wait: Wait,
}

impl Pending {
    fn complete(self, value: u64, registers: &mut Held) -> Step {
        complete(&self.instruction, self.wait, value, registers)
    }
}

/// The first access of the instruction, and what waits for it.
fn first(bytes: &[u8], mode: Mode, registers: &Held) -> (Access, Pending) {
    let instruction = decode(bytes, mode).expect("an instruction");
    match start(&instruction, registers) {
        Some(Step::Access(access, wait)) => (access, Pending { instruction, wait }),
        other => panic!("{other:?}"),
    }
}

#[test]
fn absolute_and_relative_addresses() {
    let read = |segment, offset, size| Access {
        segment,
        offset,
        size,
        write: false,
        value: 0,
    };
    let mut registers = registers();
    // mov eax, [0xfee000f0], its absolute form with 8 bytes of address.
    let (access, pending) = first(
        &[0xa1, 0xf0, 0, 0xe0, 0xfe, 0, 0, 0, 0],
        Mode::Long64,
        &registers,
    );
    assert_eq!(access, read(Segment::Ds, 0xfee0_00f0, 4));
    assert_eq!(
        pending.complete(0x1234_5678_9abc_def0, &mut registers),
        Step::Done
    );
    assert_eq!(registers.gprs.rax, 0x9abc_def0, "the upper half is cleared");
    // mov rsp, gs:[rip + 0x10]: relative to the next instruction, which is 8 bytes on.
    let (access, pending) = first(
        &[0x65, 0x48, 0x8b, 0x25, 0x10, 0, 0, 0],
        Mode::Long64,
        &registers,
    );
    assert_eq!(access, read(Segment::Gs, 0x40_0018, 8));
    assert_eq!(
        pending.complete(0x1234_5678_9abc_def0, &mut registers),
        Step::Done
    );
    assert_eq!(registers.rsp, 0x1234_5678_9abc_def0);
    assert_eq!(registers.rip, 0x40_0000);
    // mov [rsp], esp.
    let (access, _) = first(&[0x89, 0x24, 0x24], Mode::Long64, &registers);
    assert_eq!(
        access,
        Access {
            segment: Segment::Ss,
            offset: 0x1234_5678_9abc_def0,
            size: 4,
            write: true,
            value: 0x9abc_def0
        }
    );
}

#[test]
fn the_size_of_operands_is_that_of_the_mode() {
    let at = [0x89, 0x07]; // mov [bx], ax or mov [edi], eax
    for (mode, offset, size) in [
        (Mode::Real16, 0x0003, 2),
        (Mode::Protected32, 0x0001_0007, 4),
    ] {
        let mut registers = registers();
        registers.gprs.rbx += 3;
        registers.gprs.rdi += 7;
        let (access, _) = first(&at, mode, &registers);
        assert_eq!((access.offset, access.size), (offset, size), "{mode:?}");
    }
}

/// rep movsw in 16-bit code, downwards, the source in FS: SI and DI wrap, CX counts, and what is above them stays.
#[test]
fn short_strings_leave_the_upper_parts_of_registers() {
    let mut registers = registers();
    registers.rflags |= DF;
    registers.gprs.rsi = 0xaaaa_0001;
    registers.gprs.rdi = 0xbbbb_0000;
    registers.gprs.rcx = 0xcccc_0002;
    let instruction = decode(&[0xf3, 0x64, 0xa5], Mode::Real16).expect("rep movsw");
    let Some(Step::Access(access, wait)) = start(&instruction, &registers) else {
        panic!("no access");
    };
    assert_eq!(
        (access.segment, access.offset, access.write),
        (Segment::Fs, 1, false)
    );
    let Step::Access(access, wait) = complete(&instruction, wait, 0x1234, &mut registers) else {
        panic!("no second access");
    };
    assert_eq!(
        access,
        Access {
            segment: Segment::Es,
            offset: 0,
            size: 2,
            write: true,
            value: 0x1234
        }
    );
    let step = complete(&instruction, wait, 0, &mut registers);
    assert_eq!(step, Step::Repeat);
    let gprs = registers.gprs;
    assert_eq!(
        (gprs.rsi, gprs.rdi, gprs.rcx),
        (0xaaaa_ffff, 0xbbbb_fffe, 0xcccc_0001)
    );
}

/// rep stosb with 32-bit addresses in 64-bit mode: ECX counts, and the upper halves are cleared.
#[test]
fn strings_with_32_bit_addresses_clear_the_upper_halves() {
    let mut registers = registers();
    registers.gprs.rdi = 0x5_ffff_ffff;
    registers.gprs.rcx = 0x7_0000_0001;
    let (access, pending) = first(&[0xf3, 0x67, 0xaa], Mode::Long64, &registers);
    assert_eq!(access.offset, 0xffff_ffff);
    assert_eq!(pending.complete(0, &mut registers), Step::Done);
    assert_eq!((registers.gprs.rdi, registers.gprs.rcx), (0, 0));
}

/// rep stosb with 32-bit addresses: ECX is 0, whatever is above it.
#[test]
fn nothing_to_repeat_is_done() {
    let mut registers = registers();
    registers.gprs.rcx = 0x7_0000_0000;
    let instruction = decode(&[0xf3, 0x67, 0xaa], Mode::Long64).expect("rep stosb");
    assert_eq!(start(&instruction, &registers), Some(Step::Done));
}

#[test]
fn what_is_not_emulated_is_told() {
    for (bytes, what) in [
        (&[0x89, 0xc8][..], "mov eax, ecx"),
        (&[0xa6], "cmpsb"),
        (&[0xae], "scasb"),
        (&[0x6c], "insb"),
        (&[0xff, 0x06], "inc dword ptr [rsi]"),
        (&[0x0f, 0xab, 0x06], "bts [rsi], eax"),
        (&[0x0f, 0xb1, 0x0e], "cmpxchg [rsi], ecx"),
        (&[0x0f, 0x11, 0x06], "movups [rsi], xmm0"),
        (&[0x8f, 0x06], "pop [rsi]"),
        (&[0x8c, 0x1e], "mov [rsi], ds"),
        (&[0xff, 0x26], "jmp [rsi]"),
    ] {
        let instruction = decode(bytes, Mode::Long64).expect(what);
        assert_eq!(start(&instruction, &registers()), None, "{what}");
    }
}
