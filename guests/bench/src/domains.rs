//! What domains cost: a switch between two vCPUs, making and destroying one, the kernel's memory for one, and all that again beside
//! five hundred others.

use core::arch::global_asm;

use plinth_rt::abi::domain::NAME;
use plinth_rt::abi::system::start;
use plinth_rt::abi::{DomainConfig, Handle, Schedule, Status, VcpuState, call};
use plinth_rt::object::{self, Domain, Memory, System, Vcpu};
use plinth_rt::{hypercall, println, start_info};

/// Domains beside which everything is measured again.
pub const OTHERS: usize = 500;
/// RAM of a domain that is measured: 2 MiB, as that of a small guest.
const RAM: u64 = 2 << 20;
/// Where its code lies, in real mode.
const CODE: u64 = 0x1000;
/// Where it leaves what it measured: two TSC values.
const RESULT: u64 = 0x2000;
/// Switches to a vCPU that are measured at once.
const ROUNDS: u64 = 200;

// Real-mode code: EBX chooses the instruction, ECX counts. `yield` notes the TSC, yields ECX times, and notes it again; then it yields for
// ever.
global_asm!(
    ".section .rodata.bench_child, \"a\"",
    ".code16",
    "bench_child_yield:",
    "rdtsc",
    "mov [0x2000], eax",
    "mov [0x2004], edx",
    "2: mov eax, 3",
    "test ebx, ebx",
    "jz 3f",
    "vmmcall",
    "jmp 4f",
    "3: vmcall",
    "4: dec ecx",
    "jnz 2b",
    "rdtsc",
    "mov [0x2008], eax",
    "mov [0x200c], edx",
    "mov ecx, -1",
    "jmp 2b",
    "bench_child_wait:",
    "mov eax, 5",
    "mov edi, -1",
    "test ebx, ebx",
    "jz 3f",
    "vmmcall",
    "jmp bench_child_wait",
    "3: vmcall",
    "jmp bench_child_wait",
    "bench_child_end:",
    ".code64",
    ".text",
);

unsafe extern "C" {
    static bench_child_yield: u8;
    static bench_child_wait: u8;
    static bench_child_end: u8;
}

/// What a child does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    /// Yields so many times, measuring, and then for ever.
    Yield(u64),
    /// Waits for half an hour and more.
    Wait,
}

/// The machine's handles.
pub struct Machine {
    system: System,
}

/// A domain with one vCPU.
struct Child {
    domain: Domain,
    vcpu: Vcpu,
    memory: Memory,
}

impl Machine {
    /// What this domain was given; `None` where that is nothing.
    pub fn given() -> Option<Self> {
        let info = start_info()?;
        let handle = |kind| {
            let entry = info.entries.iter().find(|entry| entry.kind == kind)?;
            Some(Handle(entry.handle))
        };
        Some(Self {
            system: System(handle(start::SYSTEM)?),
        })
    }

    fn child(&self, does: Does) -> Result<Child, Status> {
        let mut name = [0; NAME];
        name[..5].copy_from_slice(b"child");
        let domain = self.system.create_domain(&DomainConfig {
            name,
            frames: RAM / 4096 + 32,
            heap: DomainConfig::usual_heap(1),
            handles: 16,
            vcpus: 1,
        })?;
        let memory = domain.create_memory(RAM)?;
        domain.map(0, memory, 0, RAM, call::access::ALL)?;
        domain.write(CODE, code())?;
        let vcpu = domain.create_vcpu()?;
        let mut state = VcpuState::RESET;
        state.cs.selector = 0;
        state.cs.base = 0;
        state.rip = CODE
            + match does {
                Does::Yield(_) => 0,
                Does::Wait => wait_offset(),
            };
        state.rbx = hypercall::is_vmmcall().into();
        state.rcx = match does {
            Does::Yield(rounds) => rounds,
            Does::Wait => 0,
        };
        vcpu.set_state(&state)?;
        vcpu.schedule(&Schedule {
            cpu: 0,
            ..Schedule::USUAL
        })?;
        Ok(Child {
            domain,
            vcpu,
            memory,
        })
    }

    /// What a switch from one vCPU to another costs, YIELD included: two yield to each other.
    fn switch(&self) -> Result<u64, Status> {
        let pair = [
            self.child(Does::Yield(ROUNDS))?,
            self.child(Does::Yield(ROUNDS))?,
        ];
        for child in &pair {
            child.domain.start()?;
        }
        let mut ends = [[0u8; 16]; 2];
        let mut done = false;
        while !done {
            object::wait(hypercall::clock() + 1_000_000)?;
            done = true;
            for (child, end) in pair.iter().zip(&mut ends) {
                child.domain.read(RESULT, end)?;
                done &= end[8..] != [0; 8];
            }
        }
        let [first, last] = ends[0].as_chunks::<8>().0 else {
            return Err(Status::BAD_ARGUMENT);
        };
        let ticks = u64::from_le_bytes(*last) - u64::from_le_bytes(*first);
        for child in pair {
            child.destroy()?;
        }
        // In each round the other had the CPU once, too.
        Ok(ticks / (2 * ROUNDS))
    }

    /// Measures, beside five hundred other domains as well.
    ///
    /// # Errors
    /// The status of a call that failed.
    pub fn measure(&self, again: &dyn Fn(&str)) -> Result<(), Status> {
        let report =
            |name: &str, value: u64| println!("bench {name}: {value} ({value} to {value})");
        self.switch()?;
        report("world_switch", self.switch()?);
        report("create_destroy", self.create_and_destroy()?);
        let before = self.system.info()?;
        let one = self.child(Does::Wait)?;
        one.domain.start()?;
        let after = self.system.info()?;
        let frames =
            before.free_frames - after.free_frames - (after.memory_frames - before.memory_frames);
        let bytes = frames * 4096 + (after.heap_used - before.heap_used);
        report("kernel_bytes_per_domain", bytes);
        one.destroy()?;
        for _ in 0..OTHERS {
            self.child(Does::Wait)?.domain.start()?;
        }
        // Until all of them wait.
        object::wait(hypercall::clock() + 500_000_000)?;
        again("_500");
        report("world_switch_500", self.switch()?);
        report("create_destroy_500", self.create_and_destroy()?);
        Ok(())
    }

    fn create_and_destroy(&self) -> Result<u64, Status> {
        let start = ticks();
        let child = self.child(Does::Wait)?;
        child.domain.start()?;
        child.destroy()?;
        Ok(ticks() - start)
    }
}

impl Child {
    fn destroy(self) -> Result<(), Status> {
        self.domain.kill()?;
        self.vcpu.any().close()?;
        self.memory.any().close()?;
        self.domain.destroy()?;
        self.domain.any().close()
    }
}

fn ticks() -> u64 {
    // SAFETY: RDTSC has no effect.
    unsafe { core::arch::x86_64::_rdtsc() }
}

fn code() -> &'static [u8] {
    let (start, end) = (&raw const bench_child_yield, &raw const bench_child_end);
    // SAFETY: the labels stand around the code, in this program's read-only data.
    unsafe { core::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

fn wait_offset() -> u64 {
    let (start, wait) = (&raw const bench_child_yield, &raw const bench_child_wait);
    // SAFETY: both labels are in the same code.
    unsafe { wait.offset_from_unsigned(start) as u64 }
}
