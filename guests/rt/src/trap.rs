//! Exceptions: a handler for each of the 256 vectors, and [`catch`], which runs code and says which exception it raised.
//!
//! An exception inside [`catch`] abandons the code that raised it, as longjmp does: its stack frames are forgotten and
//! nothing in them is dropped. A handler set by [`with_handler`] is asked first and can let the code go on instead.

#![allow(
    unsafe_code,
    reason = "the interrupt table, and leaving frames that trapped"
)]

use core::arch::{asm, global_asm};
use core::fmt;

use crate::Local;
use crate::cpu::{self, TablePointer};
use crate::{gdt, hypercall, println};

/// Vectors of the exceptions (SDM vol. 3 table 7-1), and two of the runtime's own.
#[expect(missing_docs, reason = "the exceptions' mnemonics are their names")]
pub mod vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
    /// The way back from CPL 3; its gate has DPL 3.
    pub const RETURN: u8 = 0x80;
    /// Raised by a panic inside a suite.
    pub const PANIC: u8 = 0xfe;
}

/// Exit status of a guest that took an exception nobody caught.
pub const STATUS_TRAP: u64 = plinth_abi::domain::status::TRAP;

/// The general registers but RSP, in the order in which the entry code pushes them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers' names are their documentation")]
pub struct Gprs {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}

impl Gprs {
    /// All registers zero.
    pub const ZERO: Self = Self {
        rax: 0,
        rbx: 0,
        rcx: 0,
        rdx: 0,
        rsi: 0,
        rdi: 0,
        rbp: 0,
        r8: 0,
        r9: 0,
        r10: 0,
        r11: 0,
        r12: 0,
        r13: 0,
        r14: 0,
        r15: 0,
    };
}

/// What the entry code leaves on the stack.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers' names are their documentation")]
pub struct Frame {
    pub gprs: Gprs,
    pub vector: u64,
    pub error: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// An exception or interrupt that was taken.
#[derive(Clone, Copy, Debug)]
pub struct Trap {
    /// Its vector.
    pub vector: u8,
    /// The error code; 0 where the vector has none.
    pub error: u64,
    /// CR2 when the handler was entered.
    pub cr2: u64,
    /// DR6 when the handler was entered; the handler then sets it to its reset value.
    pub dr6: u64,
    /// The registers as they were.
    pub frame: Frame,
}

impl Trap {
    const NONE: Self = Self {
        vector: 0xff,
        error: 0,
        cr2: 0,
        dr6: 0,
        frame: Frame {
            gprs: Gprs::ZERO,
            vector: 0,
            error: 0,
            rip: 0,
            cs: 0,
            rflags: 0,
            rsp: 0,
            ss: 0,
        },
    };

    /// The address of the instruction that faulted or that comes next.
    pub fn rip(&self) -> u64 {
        self.frame.rip
    }
}

impl fmt::Display for Trap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [&str; 20] = [
            "#DE",
            "#DB",
            "NMI",
            "#BP",
            "#OF",
            "#BR",
            "#UD",
            "#NM",
            "#DF",
            "vector 9",
            "#TS",
            "#NP",
            "#SS",
            "#GP",
            "#PF",
            "vector 15",
            "#MF",
            "#AC",
            "#MC",
            "#XM",
        ];
        match (NAMES.get(usize::from(self.vector)), self.vector) {
            (Some(name), _) => write!(f, "{name}({:#x})", self.error)?,
            (None, vector::PANIC) => f.write_str("panic")?,
            (None, vector) => write!(f, "vector {vector:#x}")?,
        }
        write!(f, " at {:#x}", self.frame.rip)?;
        match self.vector {
            vector::PF => write!(f, " cr2 {:#x}", self.cr2),
            vector::DB => write!(f, " dr6 {:#x}", self.dr6),
            _ => Ok(()),
        }
    }
}

/// Decides about an exception: true lets the interrupted code go on with the frame as it then is.
pub type Handler = fn(&mut Frame) -> bool;

/// One gate of the interrupt table (SDM vol. 3 figure 7-8).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Gate {
    low: u64,
    high: u64,
}

impl Gate {
    const EMPTY: Self = Self { low: 0, high: 0 };

    /// An interrupt gate to a handler in the runtime's code segment.
    pub const fn interrupt(handler: u64, dpl: u8, stack: u8) -> Self {
        Self {
            low: handler & 0xffff
                | (gdt::selector::KERNEL_CODE as u64) << 16
                | (stack as u64) << 32
                | (0x8e | (dpl as u64) << 5) << 40
                | (handler >> 16 & 0xffff) << 48,
            high: handler >> 32,
        }
    }

    /// Its two words, as they lie in the table.
    pub const fn words(self) -> [u64; 2] {
        [self.low, self.high]
    }

    /// The same gate, not present.
    pub const fn absent(self) -> Self {
        Self {
            low: self.low & !(0x80 << 40),
            ..self
        }
    }
}

static IDT: Local<[Gate; 256]> = Local::new([Gate::EMPTY; 256]);
static RECOVERY: Local<u64> = Local::new(0);
static LAST: Local<Trap> = Local::new(Trap::NONE);
static HANDLER: Local<Option<Handler>> = Local::new(None);

global_asm!(
    // One stub of 16 bytes a vector. Vectors 8, 10 to 14, 17, 21, 29 and 30 come with an error code.
    ".globl plinth_trap_stubs, plinth_trap_catch",
    ".balign 16",
    "plinth_trap_stubs:",
    ".set vector, 0",
    ".rept 256",
    ".balign 16",
    ".if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))",
    "push 0",
    ".endif",
    "push vector",
    "jmp plinth_trap_entry",
    ".set vector, vector + 1",
    ".endr",
    ".balign 16",
    "plinth_trap_entry:",
    "cld",
    "push r15",
    "push r14",
    "push r13",
    "push r12",
    "push r11",
    "push r10",
    "push r9",
    "push r8",
    "push rbp",
    "push rdi",
    "push rsi",
    "push rdx",
    "push rcx",
    "push rbx",
    "push rax",
    "mov rdi, rsp",
    "mov rbp, rsp",
    "and rsp, -16",
    "call {on_trap}",
    "test rax, rax",
    "jnz 2f",
    "mov rsp, rbp",
    "pop rax",
    "pop rbx",
    "pop rcx",
    "pop rdx",
    "pop rsi",
    "pop rdi",
    "pop rbp",
    "pop r8",
    "pop r9",
    "pop r10",
    "pop r11",
    "pop r12",
    "pop r13",
    "pop r14",
    "pop r15",
    "add rsp, 16",
    "iretq",
    // Leave the code that trapped: back to where plinth_trap_catch called it.
    "2:",
    "mov ecx, {data}",
    "mov ss, ecx",
    "mov rsp, rax",
    "mov eax, 1",
    "jmp plinth_trap_caught",
    // plinth_trap_catch(function, argument, recovery) -> 1 if function(argument) trapped, else 0
    "plinth_trap_catch:",
    "push rbp",
    "push rbx",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "push rdx",
    "push [rdx]",
    "mov [rdx], rsp",
    "mov rax, rdi",
    "mov rdi, rsi",
    "call rax",
    "xor eax, eax",
    "plinth_trap_caught:",
    "pop rcx",
    "pop rdx",
    "mov [rdx], rcx",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbx",
    "pop rbp",
    "ret",
    on_trap = sym on_trap,
    data = const gdt::selector::KERNEL_DATA,
);

unsafe extern "C" {
    static plinth_trap_stubs: u8;
    fn plinth_trap_catch(
        function: extern "C" fn(*mut u8),
        argument: *mut u8,
        recovery: *mut u64,
    ) -> u64;
}

/// Address of the entry code of a vector.
pub fn stub(vector: u8) -> u64 {
    (&raw const plinth_trap_stubs) as u64 + u64::from(vector) * 16
}

/// Address and limit of the runtime's interrupt table.
pub fn table() -> TablePointer {
    TablePointer {
        limit: 256 * 16 - 1,
        base: IDT.address() as u64,
    }
}

/// The gate of a vector as the runtime has it.
pub fn default_gate(vector: u8) -> Gate {
    let stack = if vector == vector::DF {
        gdt::DOUBLE_FAULT_STACK
    } else {
        0
    };
    let dpl = if matches!(vector, vector::RETURN | vector::BP) {
        3
    } else {
        0
    };
    Gate::interrupt(stub(vector), dpl, stack)
}

/// Replaces the gate of a vector.
pub fn set_gate(vector: u8, gate: Gate) {
    let mut table = IDT.get();
    table[usize::from(vector)] = gate;
    IDT.set(table);
}

/// Fills the table and loads it.
pub(crate) fn init() {
    let mut gates = [Gate::EMPTY; 256];
    for (vector, gate) in (0..=255).zip(gates.iter_mut()) {
        *gate = default_gate(vector);
    }
    IDT.set(gates);
    cpu::lidt(&table());
}

/// Returns the stack pointer to recover to, or 0 to go on where the exception came from.
extern "C" fn on_trap(frame: *mut Frame) -> u64 {
    let (cr2, dr6): (u64, u64);
    // SAFETY: the entry code passes the frame that it built on the stack, which nobody else refers to. Reading CR2 and DR6
    // and writing DR6's reset value has no effect on memory.
    let frame = unsafe {
        asm!("mov {}, cr2", out(reg) cr2, options(nomem, nostack, preserves_flags));
        asm!("mov {}, dr6", out(reg) dr6, options(nomem, nostack, preserves_flags));
        asm!("mov dr6, {}", in(reg) 0xffff_0ff0u64, options(nomem, nostack, preserves_flags));
        &mut *frame
    };
    if HANDLER.get().is_some_and(|handler| handler(frame)) {
        return 0;
    }
    let trap = Trap {
        vector: frame.vector as u8,
        error: frame.error,
        cr2,
        dr6,
        frame: *frame,
    };
    LAST.set(trap);
    let recovery = RECOVERY.get();
    if recovery == 0 {
        println!();
        println!("exception nobody caught: {trap}");
        hypercall::end(STATUS_TRAP);
    }
    recovery
}

/// Runs `code` and returns its value, or the exception that it raised. What `code` had on the stack is forgotten then, not
/// dropped. RFLAGS are as before in any case.
pub fn catch<T, F: FnOnce() -> T>(code: F) -> Result<T, Trap> {
    struct Job<T, F> {
        code: Option<F>,
        value: Option<T>,
    }
    extern "C" fn run<T, F: FnOnce() -> T>(job: *mut u8) {
        // SAFETY: `catch` passes a Job of the same type, which lives until the call returns and is not touched meanwhile.
        let job = unsafe { &mut *job.cast::<Job<T, F>>() };
        job.value = job.code.take().map(|code| code());
    }
    let mut job = Job {
        code: Some(code),
        value: None,
    };
    // SAFETY: `run` gets the type that it was made for. If an exception abandons it, the registers that a call preserves,
    // the stack pointer and RFLAGS are those at this call, as if it had returned.
    let trapped =
        unsafe { plinth_trap_catch(run::<T, F>, (&raw mut job).cast(), RECOVERY.address()) };
    match job.value.take() {
        Some(value) if trapped == 0 => Ok(value),
        _ => Err(LAST.get()),
    }
}

/// Runs `code` while `handler` is asked about every exception first.
pub fn with_handler<T>(handler: Handler, code: impl FnOnce() -> T) -> Result<T, Trap> {
    let before = HANDLER.get();
    HANDLER.set(Some(handler));
    let result = catch(code);
    HANDLER.set(before);
    result
}

/// Abandons the innermost [`catch`] with the vector that stands for a panic.
pub(crate) fn give_up() -> ! {
    // SAFETY: the handler of this vector leaves for the innermost `catch`, or ends the guest.
    unsafe { asm!("int {}", const vector::PANIC, options(noreturn)) }
}
