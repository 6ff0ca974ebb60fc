//! The neighbour: a domain that minds its own business while others attack. It sums up a page of words again and again, waits a little
//! now and then, keeps values in the registers that a switch of vCPUs carries, and notes when a sum or a register is not what it was,
//! and how long it was kept from the CPU.

#![allow(unsafe_code, reason = "assembled code and a state for a child domain")]

use core::sync::atomic::{AtomicU32, Ordering};

use plinth_rt::abi::{DomainState, Handle};
use plinth_rt::object::{Domain, bytes_of};
use plinth_rt::{Outcome, Snippet, Why, check, snippet};

use crate::child::{Child, DATA, Plan};
use crate::kit::{Must, Random, system, until};

/// Words that are summed up, from [`DATA`] on.
const WORDS: usize = 256;
/// How often it has found all as it was.
const ROUNDS: u64 = DATA + 0x800;
/// Which of its checks failed first; 0: none.
const WRONG: u64 = DATA + 0x808;
/// The last sum.
const SUM: u64 = DATA + 0x810;
/// What it must be.
const EXPECTED: u64 = DATA + 0x818;
/// The longest time between two rounds, in ticks of the TSC.
const GAP: u64 = DATA + 0x820;

/// FNV-1a's start and factor (Fowler, Noll, Vo), with words in place of bytes.
const START: u64 = 0xcbf2_9ce4_8422_2325;
const FACTOR: u64 = 0x0100_0000_01b3;

/// The longest that it may be kept from a CPU, with three that want two. It bounds the damage of a storm, but is far more than
/// any slice, because the computer under an emulator has other things to do, too.
const LONGEST_GAP_S: u64 = 3;

static DOMAIN: AtomicU32 = AtomicU32::new(0);

fn domain() -> Domain {
    Domain(Handle(DOMAIN.load(Ordering::Relaxed)))
}

/// What it does. After eight rounds it waits for a fifth of a millisecond: where an emulator's CPUs take turns, one that is never idle keeps
/// the others waiting for far longer. R8 holds the factor, R9 the start, R12 the moment of the last round; R10, R11, R13, R14 and RBP, all XMM registers,
/// MXCSR, DR0, DR3, CR2 and KERNEL_GS_BASE hold what nobody may change.
fn code() -> Snippet {
    snippet!(
        "mov r10, 0x1010101010101010",
        "mov r11, 0x1111111111111111",
        "mov r13, 0x1313131313131313",
        "mov r14, 0x1414141414141414",
        "mov rbp, 0x0505050505050505",
        "movq xmm0, r10",
        ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "movq xmm\\n, r11",
        ".endr",
        "mov dword ptr [0x2830], 0x9f80",
        "ldmxcsr [0x2830]",
        "mov rax, 0x123456789a",
        "mov dr0, rax",
        "not rax",
        "mov dr3, rax",
        "mov cr2, rax",
        "mov ecx, 0xc0000102",
        "mov eax, 0x12345678",
        "mov edx, 0x0000009a",
        "wrmsr",
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov r12, rax",
        // A round.
        "2: mov rax, r9",
        "mov esi, 0x2000",
        "mov ecx, 256",
        "3: xor rax, [rsi]",
        "imul rax, r8",
        "add rsi, 8",
        "dec ecx",
        "jnz 3b",
        "mov [0x2810], rax",
        "mov ebx, 1",
        "cmp rax, [0x2818]",
        "jne 9f",
        "inc ebx",
        "mov rax, 0x1010101010101010",
        "cmp r10, rax",
        "jne 9f",
        "movq rcx, xmm0",
        "cmp rcx, rax",
        "jne 9f",
        "inc ebx",
        "mov rax, 0x1111111111111111",
        "cmp r11, rax",
        "jne 9f",
        ".irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15",
        "movq rcx, xmm\\n",
        "cmp rcx, rax",
        "jne 9f",
        ".endr",
        "inc ebx",
        "mov rax, 0x1313131313131313",
        "cmp r13, rax",
        "jne 9f",
        "mov rax, 0x1414141414141414",
        "cmp r14, rax",
        "jne 9f",
        "mov rax, 0x0505050505050505",
        "cmp rbp, rax",
        "jne 9f",
        "inc ebx",
        "stmxcsr [0x2834]",
        "cmp dword ptr [0x2834], 0x9f80",
        "jne 9f",
        "inc ebx",
        "mov rax, 0x123456789a",
        "mov rcx, dr0",
        "cmp rcx, rax",
        "jne 9f",
        "not rax",
        "mov rcx, dr3",
        "cmp rcx, rax",
        "jne 9f",
        "inc ebx",
        "mov rcx, cr2",
        "cmp rcx, rax",
        "jne 9f",
        "inc ebx",
        "mov ecx, 0xc0000102",
        "rdmsr",
        "cmp eax, 0x12345678",
        "jne 9f",
        "cmp edx, 0x9a",
        "jne 9f",
        // The gap.
        "rdtsc",
        "shl rdx, 32",
        "or rax, rdx",
        "mov rcx, rax",
        "sub rcx, r12",
        "mov r12, rax",
        "cmp rcx, [0x2820]",
        "jbe 4f",
        "mov [0x2820], rcx",
        "4: inc qword ptr [0x2800]",
        "test byte ptr [0x2800], 7",
        "jnz 2b",
        // CLOCK and WAIT. The value in RDX is the time.
        "mov eax, 2",
        "call r15",
        "lea rdi, [rdx + 200000]",
        "mov eax, 5",
        "call r15",
        "jmp 2b",
        "9: mov [0x2808], rbx",
        "8: jmp 8b",
    )
}

/// What the checks look at, by their numbers in the code.
const CHECKS: [&str; 9] = [
    "nothing",
    "the sum",
    "R10 or XMM0",
    "R11 or another XMM register",
    "R13, R14 or RBP",
    "MXCSR",
    "DR0 or DR3",
    "CR2",
    "KERNEL_GS_BASE",
];

/// Makes it and lets it run, for as long as the machine does.
pub fn move_in() -> Outcome {
    let child = Child::new(&Plan::new(code()))?;
    let mut random = Random::new(0x6e65_6967_6862_6f75);
    let mut sum = START;
    let words: [u64; WORDS] = core::array::from_fn(|_| random.number());
    for word in words {
        sum = (sum ^ word).wrapping_mul(FACTOR);
    }
    child.write(DATA, bytes_of(&words))?;
    child.set_word(EXPECTED, sum)?;
    child.set(0, |state| {
        state.r8 = FACTOR;
        state.r9 = START;
    })?;
    child.start()?;
    DOMAIN.store(child.domain.any().0.0, Ordering::Relaxed);
    core::mem::forget(child);
    goes_on(0).map(drop)
}

/// Takes over one that lives already, by a handle with all rights.
pub fn adopt(neighbour: Domain) {
    DOMAIN.store(neighbour.0.0, Ordering::Relaxed);
}

/// The number of its domain.
pub fn number() -> Result<u32, Why> {
    Ok(domain().info().must("the neighbour's info")?.number)
}

fn word(gpa: u64) -> Result<u64, Why> {
    let mut word = [0; 8];
    domain()
        .read(gpa, &mut word)
        .must("read the neighbour's memory")?;
    Ok(u64::from_le_bytes(word))
}

/// Its rounds so far; from now on its gaps are looked at.
pub fn watch() -> Result<u64, Why> {
    domain()
        .write(GAP, &0u64.to_le_bytes())
        .must("write the neighbour's memory")?;
    word(ROUNDS)
}

/// It must have done more rounds than `before` since [`watch`], do more now, and find all as it was.
pub fn goes_on(before: u64) -> Outcome {
    let now = word(ROUNDS)?;
    until("another round of the neighbour", || {
        Ok(word(ROUNDS)? > now.max(before) || word(WRONG)? != 0)
    })?;
    let wrong = word(WRONG)?;
    check!(
        wrong == 0,
        "the neighbour finds {} changed",
        CHECKS.get(wrong as usize).unwrap_or(&"something")
    );
    check!(
        word(SUM)? == word(EXPECTED)?,
        "the neighbour's sum is wrong"
    );
    let info = domain().info().must("the neighbour's info")?;
    check!(
        info.state == DomainState::RUNNING,
        "the neighbour is {}",
        info.state.text()
    );
    let longest = LONGEST_GAP_S * system().info().must("system info")?.tsc_hz;
    let gap = word(GAP)?;
    check!(
        gap < longest,
        "the neighbour was kept from the CPU for {gap} ticks"
    );
    Ok(())
}
