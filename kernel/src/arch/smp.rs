//! The other CPUs: INIT, start-up, and the climb from real mode (SDM vol. 3 11.4; APM vol. 2 15.27.7 says nothing else).
//!
//! CPUs that the MADT names are started one by one. Where there is no ACPI, one broadcast starts all, and those that answer
//! are there. Either way one CPU at a time takes the stack that the boot CPU has put out for it, so that the order of
//! ids is the order of starting.

#![allow(
    unsafe_code,
    reason = "code and tables for CPUs in real mode, in frames below 1 MiB"
)]

use alloc::vec::Vec;
use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use spin::Once;

use super::apic::{self, Target};
use super::cpu::{self, Cpu};
use super::msr::{self, Msr};
use super::{fpu, gdt, idt, machine_check, mtrr, paging, speculation, stacks, time, trap};
use crate::boot::acpi::Firmware;
use crate::mem::frames::{Owner, frames};
use crate::mem::{Hpa, PAGE_SIZE, PageSize, phys};

/// Pages of a CPU's stack.
const STACK_PAGES: usize = 16;
/// How long after INIT the start-up message follows, in microseconds (SDM 11.4.4.1).
const INIT_WAIT_US: u64 = 10_000;
/// How long after the first start-up message the second one follows.
const STARTUP_WAIT_US: u64 = 200;
/// How long a CPU that was told to start may take to answer.
const ANSWER_WAIT_US: u64 = 500_000;
/// As much for a broadcast, where silence is the normal end.
const BROADCAST_WAIT_US: u64 = 200_000;

// The trampoline: copied to a frame below 1 MiB, entered in real mode with CS = frame >> 4 and IP = 0. What it needs follows the
// code, and is filled in after copying.
global_asm!(
    ".section .rodata.plinth_trampoline, \"a\"",
    ".balign 16",
    "plinth_trampoline:",
    ".code16",
    "cli",
    "cld",
    "mov ax, cs",
    "mov ds, ax",
    "xor ebx, ebx",
    "mov bx, ax",
    "shl ebx, 4",
    "lgdtd ds:[plinth_offset_gdtr]",
    "mov eax, cr4",
    "or eax, 0x20", // PAE
    "mov cr4, eax",
    "mov eax, dword ptr ds:[plinth_offset_root]",
    "mov cr3, eax",
    "mov ecx, 0xc0000080",
    "rdmsr",
    "or eax, 0x900", // LME, NXE
    "wrmsr",
    "mov eax, cr0",
    "and eax, 0x9fffffff", // CD and NW, set by INIT, go
    "or eax, 0x80000001",  // PG, PE
    "mov cr0, eax",
    "jmp fword ptr ds:[plinth_offset_far]",
    ".code64",
    "plinth_trampoline_long:",
    "mov eax, 0x10",
    "mov ss, eax",
    "mov ds, eax",
    "mov es, eax",
    "mov rax, qword ptr [rbx + plinth_offset_cr3]",
    "mov rdx, qword ptr [rbx + plinth_offset_entry]",
    "mov rcx, qword ptr [rbx + plinth_offset_mailbox]",
    "mov cr3, rax",
    "2:",
    "xor esi, esi",
    "xchg rsi, qword ptr [rcx]",
    "test rsi, rsi",
    "jnz 3f",
    "pause",
    "jmp 2b",
    "3:",
    "cmp rsi, {park}",
    "je 4f",
    "mov rsp, rsi",
    "pop rdi",
    "xor ebp, ebp",
    "jmp rdx",
    // There is no room for this CPU: the next one is to know it, too.
    "4:",
    "mov qword ptr [rcx], rsi",
    "5:",
    "hlt",
    "jmp 5b",
    ".balign 8",
    "plinth_trampoline_gdt:",
    ".quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff",
    "plinth_trampoline_gdtr:",
    ".word 23",
    ".long 0",
    ".balign 8",
    "plinth_trampoline_far:",
    ".long 0",
    ".word 8",
    ".balign 8",
    "plinth_trampoline_root: .quad 0",
    "plinth_trampoline_cr3: .quad 0",
    "plinth_trampoline_entry: .quad 0",
    "plinth_trampoline_mailbox: .quad 0",
    "plinth_trampoline_end:",
    ".set plinth_offset_cr3, plinth_trampoline_cr3 - plinth_trampoline",
    ".set plinth_offset_entry, plinth_trampoline_entry - plinth_trampoline",
    ".set plinth_offset_far, plinth_trampoline_far - plinth_trampoline",
    ".set plinth_offset_gdtr, plinth_trampoline_gdtr - plinth_trampoline",
    ".set plinth_offset_mailbox, plinth_trampoline_mailbox - plinth_trampoline",
    ".set plinth_offset_root, plinth_trampoline_root - plinth_trampoline",
    ".text",
    park = const PARK,
);

macro_rules! address_of {
    ($symbol:literal) => {{
        let address: u64;
        // SAFETY: computes an address.
        unsafe {
            asm!(concat!("lea {}, [rip + ", $symbol, "]"), out(reg) address, options(nomem, nostack, preserves_flags));
        }
        address
    }};
}

/// In the mailbox instead of a stack: no CPU is wanted any more.
const PARK: u64 = 1;
/// The stack pointer for the next CPU; it takes it and leaves 0.
static MAILBOX: AtomicU64 = AtomicU64::new(0);
/// CPUs that have come up, the boot CPU included.
static ONLINE: AtomicU32 = AtomicU32::new(1);
/// Where a CPU goes when it is up.
static LIFE: Once<fn(&'static Cpu) -> !> = Once::new();
/// Control registers and page attributes that all CPUs share.
static SHARED: Once<Shared> = Once::new();

struct Shared {
    cr0: u64,
    cr4: u64,
    pat: u64,
    mtrrs: Vec<(u32, u64)>,
}

/// Frames below 1 MiB that a start needs: the trampoline, and tables that map the low 2 MiB to itself.
struct Low {
    code: Hpa,
    tables: [Hpa; 3],
}

const LOW_MEMORY: u64 = 1 << 20;

impl Low {
    fn new() -> Option<Self> {
        let frame = || frames().allocate_below(LOW_MEMORY, Owner::Trampoline).ok();
        Some(Self {
            code: frame()?,
            tables: [frame()?, frame()?, frame()?],
        })
    }

    /// Copies the code and fills in what it needs.
    fn fill(&self) {
        let start = address_of!("plinth_trampoline");
        let at = |symbol: u64| Hpa::new(self.code.get() + (symbol - start));
        let [root, directory_pointers, directory] = self.tables;
        let cr3 = control_register_3();
        const PRESENT_WRITABLE: u64 = 3;
        const LARGE: u64 = 1 << 7;
        let [
            length,
            gdt,
            long,
            gdtr,
            far,
            root_at,
            cr3_at,
            entry_at,
            mailbox_at,
        ] = [
            address_of!("plinth_trampoline_end") - start,
            at(address_of!("plinth_trampoline_gdt")).get(),
            at(address_of!("plinth_trampoline_long")).get(),
            address_of!("plinth_trampoline_gdtr") + 2,
            address_of!("plinth_trampoline_far"),
            address_of!("plinth_trampoline_root"),
            address_of!("plinth_trampoline_cr3"),
            address_of!("plinth_trampoline_entry"),
            address_of!("plinth_trampoline_mailbox"),
        ];
        // SAFETY: the frames were just allocated, and nobody else knows them. The code lies in the kernel's read-only data, as
        // long as its symbols say. The kernel's root table is a page that stays mapped.
        unsafe {
            phys::copy_to(
                self.code,
                core::slice::from_raw_parts(start as *const u8, length as usize),
            );
            phys::write(at(gdtr), gdt as u32);
            phys::write(at(far), long as u32);
            phys::write(at(root_at), root.get());
            // Only these tables map the trampoline where it runs; `entry` loads the kernel's own.
            phys::write(at(cr3_at), root.get());
            phys::write(at(entry_at), entry as *const () as u64);
            phys::write(at(mailbox_at), &raw const MAILBOX as u64);
            for index in 0..512 {
                let kernel: u64 = phys::read(Hpa::new((cr3 & !0xfff) + index * 8));
                phys::write(Hpa::new(root.get() + index * 8), kernel);
            }
            phys::write(root, directory_pointers.get() | PRESENT_WRITABLE);
            phys::write(directory_pointers, directory.get() | PRESENT_WRITABLE);
            phys::write(directory, PRESENT_WRITABLE | LARGE);
        }
    }

    fn page(&self) -> u8 {
        (self.code.get() / PAGE_SIZE) as u8
    }

    fn free(self) {
        for frame in [self.code, self.tables[0], self.tables[1], self.tables[2]] {
            // A refusal is logged by the allocator.
            let _ = frames().free(frame, PageSize::Size4K, Owner::Trampoline);
        }
    }
}

/// Whether no CPU of the machine is left in the state that firmware or INIT has left it in.
static ALL_UP: AtomicBool = AtomicBool::new(false);

/// Whether every CPU of the machine is up: an NMI to all reaches none that could not take it.
pub fn all_are_up() -> bool {
    ALL_UP.load(Ordering::Acquire)
}

/// Brings up every other CPU, `most` in all; each goes on in `life`. Of a core's threads all but the first are parked there, where they
/// are not to run guests.
pub fn start_all(firmware: &Firmware, most: u32, life: fn(&'static Cpu) -> !) {
    LIFE.call_once(|| life);
    SHARED.call_once(Shared::of_this_cpu);
    let most = most as usize;
    if most <= 1 {
        ALL_UP.store(firmware.cpus.len() == 1, Ordering::Release);
        return;
    }
    let Some(low) = Low::new() else {
        log::warn!("no memory below 1 MiB is free: the other CPUs stay off");
        return;
    };
    low.fill();
    let me = apic::id();
    let mut all_answered = true;
    if firmware.cpus.is_empty() {
        log::info!("no ACPI tables name CPUs: all that answer a broadcast are taken");
        apic::send_init(Target::AllOthers);
        time::delay_us(INIT_WAIT_US);
        start_up(Target::AllOthers, low.page());
        while cpu::cpus().len() < most && admit(BROADCAST_WAIT_US) {}
        // More may be waiting than were wanted.
        all_answered = cpu::cpus().len() < most;
    } else {
        let others = firmware.cpus.iter().map(|entry| entry.apic_id);
        let (others, unreachable): (Vec<_>, Vec<_>) = others
            .filter(|&id| id != me)
            .partition(|&id| apic::can_address(id));
        for id in unreachable {
            log::warn!("the CPU with APIC id {id} cannot be reached without x2APIC and stays off");
        }
        for &id in &others {
            apic::send_init(Target::One(id));
        }
        if !others.is_empty() {
            // One wait serves all of them.
            time::delay_us(INIT_WAIT_US);
        }
        for id in others {
            if cpu::cpus().len() >= most {
                break;
            }
            start_up(Target::One(id), low.page());
            if !admit(ANSWER_WAIT_US) {
                all_answered = false;
                log::warn!("the CPU with APIC id {id} does not answer and stays off");
            }
        }
    }
    let parked = ONLINE.load(Ordering::Acquire) as usize - cpu::cpus().len();
    if parked != 0 {
        log::info!(
            "{parked} CPU{} idle: guests run on one thread of each core alone",
            if parked == 1 { " stays" } else { "s stay" }
        );
    }
    let online = ONLINE.load(Ordering::Acquire) as usize;
    let all_up = all_answered && (firmware.cpus.is_empty() || online == firmware.cpus.len());
    ALL_UP.store(all_up, Ordering::Release);
    if all_answered {
        low.free();
    } else {
        // Whoever arrives from now on finds the trampoline still there, and halts in it.
        MAILBOX.store(PARK, Ordering::Release);
    }
}

/// Start-up, twice, for who has got INIT before.
fn start_up(target: Target, page: u8) {
    apic::send_startup(target, page);
    time::delay_us(STARTUP_WAIT_US);
    apic::send_startup(target, page);
}

/// Puts out a stack, and waits until a CPU has taken it and is up; false where none comes.
fn admit(wait_us: u64) -> bool {
    let online = ONLINE.load(Ordering::Acquire);
    let id = cpu::cpus().len() as u32;
    let Ok(stack) = paging::map_stack(STACK_PAGES) else {
        log::warn!("no memory for the stack of another CPU");
        return false;
    };
    let (bottom, end) = (stack.bottom().get(), stack.top().get());
    let cpu = Cpu::leaked(id);
    let top = end - 16;
    // SAFETY: the top of a stack that nobody uses yet.
    unsafe { (top as *mut *const Cpu).write(cpu) };
    MAILBOX.store(top, Ordering::Release);
    let come = || ONLINE.load(Ordering::Acquire) > online;
    let deadline = time::tsc() + time::ticks_of_us(wait_us);
    while !come() && time::tsc() < deadline {
        core::hint::spin_loop();
    }
    // Taken back, unless a CPU takes it at this moment: that one is then waited for.
    if !come() && MAILBOX.swap(0, Ordering::AcqRel) != 0 {
        paging::unmap_stack(stack);
        return false;
    }
    while !come() {
        core::hint::spin_loop();
    }
    stacks::remember(bottom, end);
    let bits = speculation::thread_bits();
    let shares_core = |other: &&Cpu| other.apic_id() >> bits == cpu.apic_id() >> bits;
    if cpu::cpus().iter().any(shares_core) && !speculation::uses_threads() {
        cpu.park();
    } else {
        cpu::list(cpu);
    }
    true
}

/// A CPU arrives from the trampoline, on its own stack.
extern "C" fn entry(cpu: &'static Cpu) -> ! {
    if let Some(shared) = SHARED.get() {
        shared.adopt();
    }
    cpu.install();
    init_tables(cpu);
    fpu::init(false);
    machine_check::init();
    apic::init_cpu();
    cpu.set_apic_id(apic::id());
    time::init_cpu();
    if let Some(shared) = SHARED.get() {
        shared.adopt_memory_types();
    }
    ONLINE.fetch_add(1, Ordering::AcqRel);
    match LIFE.get() {
        Some(life) => life(cpu),
        None => trap::halt_forever(),
    }
}

/// Loads the calling CPU's descriptor tables, with new interrupt stacks.
///
/// # Panics
/// Where there is no memory for them: a CPU that cannot take an NMI must not run.
pub(super) fn init_tables(cpu: &'static Cpu) {
    let tops = core::array::from_fn(|_| match paging::map_stack(gdt::IST_PAGES) {
        Ok(stack) => {
            stacks::remember(stack.bottom().get(), stack.top().get());
            stack.top().get()
        }
        Err(why) => panic!("no interrupt stack for cpu{}: {why:?}", cpu.id),
    });
    cpu.tables.load(tops);
    cpu.install();
    idt::load();
}

fn control_register_3() -> u64 {
    let value: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}

/// The kernel's page tables, for CPUs that arrive on the trampoline's.
static KERNEL_ROOT: AtomicU64 = AtomicU64::new(0);

impl Shared {
    fn of_this_cpu() -> Self {
        KERNEL_ROOT.store(control_register_3(), Ordering::Release);
        let (cr0, cr4): (u64, u64);
        // SAFETY: reads registers.
        unsafe {
            asm!("mov {}, cr0", "mov {}, cr4", out(reg) cr0, out(reg) cr4, options(nomem, nostack, preserves_flags));
        }
        Self {
            cr0,
            cr4,
            pat: msr::read(Msr::IA32_PAT),
            mtrrs: mtrr::registers(),
        }
    }

    /// Makes the calling CPU like the boot CPU.
    fn adopt(&self) {
        // SAFETY: the values are those with which the boot CPU runs the same kernel; the root maps this code and stack.
        unsafe {
            asm!("mov cr4, {}", "mov cr0, {}", "mov cr3, {}",
                in(reg) self.cr4, in(reg) self.cr0, in(reg) KERNEL_ROOT.load(Ordering::Acquire), options(nostack));
            msr::write(Msr::IA32_PAT, self.pat);
        }
    }

    /// Gives the calling CPU the boot CPU's memory types: a CPU must not run with others (SDM vol. 3 13.11.8).
    fn adopt_memory_types(&self) {
        let count = mtrr::adopt(&self.mtrrs);
        if count != 0 {
            log::info!(
                "the CPU with APIC id {} had {count} memory-type registers unlike the boot CPU's, and has got those",
                apic::id(),
            );
        }
    }
}
