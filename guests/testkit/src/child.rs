//! Child domains: a few pages of memory, a few instructions, one vCPU or more, made and taken back by a test.
//!
//! A child's memory, from guest-physical address 0 on, which is its linear address as well:
//!
//! | page | what it holds |
//! |---|---|
//! | [`TABLE`] | the page table: one page that is all four of its levels |
//! | [`CODE`] | the hypercall instruction, the test's code, handlers of the vectors 32 to 47, IDT, GDT |
//! | [`DATA`] | what the code and the test tell each other; the handlers' counters are at [`COUNTERS`] |
//! | [`STACK`] | a stack for each vCPU |
//! | [`SCRIPTS`] | for each vCPU a script: see [`Child::load`] |
//!
//! R15 holds the address of the hypercall instruction and a return, so that code says `call r15` on every CPU. Linear addresses
//! reach 2 MiB far, memory or not.

#![allow(unsafe_code, reason = "assembled code is read as bytes")]

use core::ops::Deref;

use plinth_rt::abi::call::access;
use plinth_rt::abi::{
    Call, DomainConfig, DomainInfo, DomainState, Handle, Reason, Schedule, Segment, Status,
    VcpuState,
};
use plinth_rt::object::{Any, Domain, Memory, Vcpu, bytes_of};
use plinth_rt::{Outcome, Snippet, Why, check, check_eq, hypercall, snippet};

use crate::kit::{Must, Owned, patiently, system, until};

/// Where the page table lies.
pub const TABLE: u64 = 0;
/// Where the hypercall instruction lies.
const CODE: u64 = 0x1000;
/// Where the test's code begins.
pub const ENTRY: u64 = CODE + 0x10;
/// Memory for the test.
pub const DATA: u64 = 0x2000;
/// A word for each vector from 32 on: how often it came.
pub const COUNTERS: u64 = DATA + 0xf00;
/// Words through which the steps of scripts pass values.
pub const CELLS: u64 = DATA + 0x800;
/// Where the stacks are.
pub const STACK: u64 = 0x3000;
/// Where the scripts begin.
pub const SCRIPTS: u64 = 0x4000;

pub(crate) const PAGE: u64 = 4096;
/// Pages of a child without scripts.
const PAGES: u64 = 4;
/// Pages of a vCPU's script.
const SCRIPT_PAGES: u64 = 4;
/// Most steps of a script.
pub const STEPS: usize = 64;
/// Frames for the kernel's needs: tables, vCPUs, console.
const KERNEL_FRAMES: u64 = 64;
/// Most vCPUs that a test makes.
const VCPUS: usize = 3;

/// First address of the handlers' code, of the IDT's gate 32, and of the GDT, as offsets in the page.
const HANDLERS: usize = 0xb00;
const GATES: usize = 0xe00;
const GDT: usize = 0xf00;
/// Vectors that have a handler: from 32 on.
const VECTORS: usize = 16;

/// The instructions of a snippet as bytes.
pub fn bytes(code: &Snippet) -> &'static [u8] {
    // SAFETY: a snippet is assembled code in the suite's own image, which nothing changes.
    unsafe { core::slice::from_raw_parts(code.start() as *const u8, code.length() as usize) }
}

/// A page table that is its own next level: entry 0 leads back to it three times, and at the last level entry N maps page N.
const TABLES: [u64; 512] = {
    let mut table = [0; 512];
    let mut index = 0;
    while index < 512 {
        // Present and writable.
        table[index] = ((index as u64) * PAGE) | 3;
        index += 1;
    }
    table
};

/// What a child is made of.
#[derive(Clone, Copy)]
pub struct Plan {
    /// What its first vCPU runs, and the others as well.
    pub code: Snippet,
    /// vCPUs.
    pub vcpus: u32,
    /// vCPUs that it could have.
    pub max_vcpus: u32,
    /// Pages of memory.
    pub pages: u64,
    /// Budget of frames besides its memory.
    pub frames: u64,
    /// Budget of kernel heap.
    pub heap: u64,
    /// Budget of handles.
    pub handles: u32,
    /// What machine its vCPUs see: bits of `platform`.
    pub platform: u32,
    /// The Unix time in nanoseconds when the clock was 0.
    pub wall_clock: u64,
}

impl Plan {
    /// One vCPU and what it usually needs.
    pub const fn new(code: Snippet) -> Self {
        Self {
            code,
            vcpus: 1,
            max_vcpus: 4,
            pages: PAGES,
            frames: KERNEL_FRAMES,
            heap: DomainConfig::usual_heap(4),
            handles: 32,
            platform: 0,
            wall_clock: 0,
        }
    }
}

/// A domain's configuration by that name.
pub fn config(name: &[u8]) -> DomainConfig {
    let mut config = DomainConfig {
        name: [0; plinth_rt::abi::domain::NAME],
        frames: KERNEL_FRAMES,
        heap: DomainConfig::usual_heap(1),
        handles: 16,
        vcpus: 1,
        platform: 0,
        reserved: 0,
        wall_clock: 0,
    };
    for (place, byte) in config.name.iter_mut().zip(name) {
        *place = *byte;
    }
    config
}

/// A domain that is ended, destroyed and closed when it is dropped, whatever state it is in.
pub struct Temporary(Domain);

impl Temporary {
    /// Makes one, without memory and vCPUs.
    pub fn new(config: &DomainConfig) -> Result<Self, Why> {
        system()
            .create_domain(config)
            .must("create domain")
            .map(Self)
    }
}

impl From<Domain> for Temporary {
    fn from(domain: Domain) -> Self {
        Self(domain)
    }
}

impl Deref for Temporary {
    type Target = Domain;

    fn deref(&self) -> &Domain {
        &self.0
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Each may be refused because the test has done it; what stays behind shows in the accounts.
        let _ = self.0.kill();
        let _ = self.0.destroy();
        let _ = self.0.any().close();
    }
}

/// A child domain.
pub struct Child {
    /// The domain.
    pub domain: Temporary,
    /// Its memory, charged to it.
    pub memory: Owned<Memory>,
    vcpus: [Option<Owned<Vcpu>>; VCPUS],
    pages: u64,
}

impl Child {
    /// Makes it; it is ready to start.
    pub fn new(plan: &Plan) -> Result<Self, Why> {
        let config = DomainConfig {
            frames: plan.pages + plan.frames,
            heap: plan.heap,
            handles: plan.handles,
            vcpus: plan.max_vcpus,
            platform: plan.platform,
            wall_clock: plan.wall_clock,
            ..config(b"child")
        };
        let domain = Temporary::new(&config)?;
        let memory = domain
            .create_memory(plan.pages * PAGE)
            .must("its memory")
            .map(Owned)?;
        let mut child = Self {
            domain,
            memory,
            vcpus: [const { None }; VCPUS],
            pages: plan.pages,
        };
        child.fill(plan)?;
        Ok(child)
    }

    /// One vCPU that runs this code.
    pub fn running(code: Snippet) -> Result<Self, Why> {
        let child = Self::new(&Plan::new(code))?;
        child.start()?;
        Ok(child)
    }

    fn fill(&mut self, plan: &Plan) -> Outcome {
        let all = self.pages * PAGE;
        self.domain
            .map(0, *self.memory, 0, all, access::ALL)
            .must("map its memory")?;
        self.write(TABLE, bytes_of(&TABLES))?;
        self.write(CODE, &code_page(&plan.code)?)?;
        for (index, place) in (0..plan.vcpus).zip(&mut self.vcpus) {
            let vcpu = self.domain.create_vcpu().must("create vCPU").map(Owned)?;
            let mut state =
                VcpuState::long_mode(ENTRY, STACK + PAGE - u64::from(index) * 512, TABLE);
            state.r15 = CODE;
            state.gdtr.base = CODE + GDT as u64;
            state.gdtr.limit = 3 * 8 - 1;
            // The gates before 32 are not there: an exception ends the domain.
            state.idtr.base = CODE + GATES as u64 - 32 * 16;
            state.idtr.limit = (32 + VECTORS as u32) * 16 - 1;
            vcpu.set_state(&state).must("set state")?;
            *place = Some(vcpu);
        }
        Ok(())
    }

    /// Adds a vCPU, in the state after reset; its index.
    pub fn add_vcpu(&mut self) -> Result<usize, Why> {
        let free = self.vcpus.iter().position(Option::is_none);
        let Some((index, place)) = free.and_then(|index| Some((index, self.vcpus.get_mut(index)?)))
        else {
            return Err(format_args!("no place for a vCPU").into());
        };
        *place = Some(self.domain.create_vcpu().must("create vCPU").map(Owned)?);
        Ok(index)
    }

    /// A vCPU of it; one that it does not have is a handle that names nothing.
    pub fn vcpu(&self, index: usize) -> Vcpu {
        match self.vcpus.get(index) {
            Some(Some(vcpu)) => **vcpu,
            _ => Vcpu(Handle::NONE),
        }
    }

    /// Changes the state of a vCPU that does not run.
    pub fn set(&self, index: usize, change: impl FnOnce(&mut VcpuState)) -> Outcome {
        let mut state = self.state(index)?;
        change(&mut state);
        self.vcpu(index).set_state(&state).must("set state")
    }

    /// The state of a vCPU that does not run.
    pub fn state(&self, index: usize) -> Result<VcpuState, Why> {
        patiently(|| self.vcpu(index).state()).must("get state")
    }

    /// Lets a vCPU run on this CPU only.
    pub fn pin(&self, index: usize, cpu: u32) -> Outcome {
        let schedule = Schedule {
            cpu,
            ..Schedule::USUAL
        };
        self.vcpu(index).schedule(&schedule).must("pin")
    }

    /// Starts it.
    pub fn start(&self) -> Outcome {
        self.domain.start().must("start")
    }

    /// Copies bytes into its memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Outcome {
        self.domain.write(gpa, bytes).must("write its memory")
    }

    /// A word of its memory.
    pub fn word(&self, gpa: u64) -> Result<u64, Why> {
        let mut word = [0; 8];
        self.domain.read(gpa, &mut word).must("read its memory")?;
        Ok(u64::from_le_bytes(word))
    }

    /// Words of the data page, by their offsets, must have these values.
    pub fn holds(&self, words: &[(u64, u64)], what: &str) -> Outcome {
        for &(offset, expected) in words {
            let seen = self.word(DATA + offset)?;
            check!(
                seen == expected,
                "{what} at {offset:#x}: {seen:#x}, expected {expected:#x}"
            );
        }
        Ok(())
    }

    /// Sets a word of its memory.
    pub fn set_word(&self, gpa: u64, value: u64) -> Outcome {
        self.write(gpa, &value.to_le_bytes())
    }

    /// Waits until a word of its memory has this value.
    pub fn until_word(&self, gpa: u64, value: u64) -> Outcome {
        until(
            "a word of a child's memory",
            || Ok(self.word(gpa)? == value),
        )
    }

    /// Waits until a word of its memory has changed.
    pub fn until_change(&self, gpa: u64) -> Outcome {
        let before = self.word(gpa)?;
        until("a change in a child's memory", || {
            Ok(self.word(gpa)? != before)
        })
    }

    /// Its state of life.
    pub fn is(&self, state: DomainState) -> Result<bool, Why> {
        Ok(self.domain.info().must("domain info")?.state == state)
    }

    /// Waits until it has ended, which must be for this reason.
    pub fn ends(&self, reason: Reason) -> Result<DomainInfo, Why> {
        until("a child's end", || self.is(DomainState::ENDED))?;
        let info = self.domain.info().must("domain info")?;
        check!(
            info.reason == reason,
            "ended: {} {:x?}, expected: {}",
            info.reason.text(),
            info.info,
            reason.text()
        );
        Ok(info)
    }

    /// Waits until it has ended itself with this status.
    pub fn ends_with(&self, status: u64) -> Outcome {
        check_eq!(self.ends(Reason::STATUS)?.info[0], status, "status");
        Ok(())
    }

    /// Leaves it to itself: only the handles to it are given up.
    pub fn leave(self) {
        let domain = *self.domain;
        core::mem::forget(self.domain);
        drop(Owned(domain));
    }

    /// Destroys it; that it can be.
    pub fn destroy(&self) -> Outcome {
        self.domain.destroy().must("destroy")
    }
}

fn code_page(code: &Snippet) -> Result<[u8; PAGE as usize], Why> {
    let mut page = [0; PAGE as usize];
    let hypercall = if hypercall::is_vmmcall() { 0xd9 } else { 0xc1 };
    let code = bytes(code);
    check!(
        ENTRY as usize % PAGE as usize + code.len() <= HANDLERS,
        "the code is too long"
    );
    put(&mut page, 0, &[0x0f, 0x01, hypercall, 0xc3]);
    put(&mut page, (ENTRY - CODE) as usize, code);
    for vector in 0..VECTORS {
        let counter = COUNTERS as u32 + vector as u32 * 8;
        let handler = HANDLERS + vector * 16;
        // inc qword ptr [counter]; iretq
        put(&mut page, handler, &[0x48, 0xff, 0x04, 0x25]);
        put(&mut page, handler + 4, &counter.to_le_bytes());
        put(&mut page, handler + 8, &[0x48, 0xcf]);
        // An interrupt gate to selector 8 (SDM vol. 3 figure 7-8). The address is below 64 KiB.
        let gate = (CODE + handler as u64) | 8 << 16 | 0x8e << 40;
        put(&mut page, GATES + vector * 16, &gate.to_le_bytes());
    }
    put(&mut page, GDT + 8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    put(
        &mut page,
        GDT + 16,
        &0x00cf_9300_0000_ffff_u64.to_le_bytes(),
    );
    Ok(page)
}

fn put(page: &mut [u8], offset: usize, bytes: &[u8]) {
    for (place, byte) in page.iter_mut().skip(offset).zip(bytes) {
        *place = *byte;
    }
}

/// A loop that does nothing.
pub fn spin() -> Snippet {
    snippet!("2: jmp 2b")
}

/// Counts the word at [`DATA`] up for ever.
pub fn count() -> Snippet {
    snippet!("2: inc qword ptr [0x2000]", "jmp 2b")
}

/// Waits for ever, without an event.
pub fn wait() -> Snippet {
    snippet!("2: mov eax, 5", "mov rdi, -1", "call r15", "jmp 2b")
}

/// Ends with the status in RBX.
pub fn end() -> Snippet {
    snippet!("mov eax, 4", "mov rdi, rbx", "call r15")
}

/// A state of real mode with its code at `ip`.
pub fn real_mode(ip: u64) -> VcpuState {
    let mut state = VcpuState::RESET;
    state.cs = Segment {
        selector: 0,
        base: 0,
        ..state.cs
    };
    state.rip = ip;
    state.rsp = STACK + PAGE;
    state
}

/// One hypercall of a script.
#[derive(Clone, Copy)]
pub struct Step {
    call: Call,
    arguments: [u64; 6],
    from: u64,
    to: u64,
}

impl Step {
    /// This call with these arguments.
    pub fn new<const N: usize>(call: Call, arguments: [u64; N]) -> Self {
        const { assert!(N <= 6, "a call takes six arguments at most") };
        let mut all = [0; 6];
        all[..N].copy_from_slice(&arguments);
        Self {
            call,
            arguments: all,
            from: 0,
            to: 0,
        }
    }

    /// Its first argument is what a cell holds.
    pub fn from(self, cell: u64) -> Self {
        Self {
            from: CELLS + cell * 8,
            ..self
        }
    }

    /// Its value, if it succeeds, goes to a cell.
    pub fn to(self, cell: u64) -> Self {
        Self {
            to: CELLS + cell * 8,
            ..self
        }
    }
}

/// What a vCPU does when its script is over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It ends the domain with status 0.
    End,
    /// It waits for ever.
    Wait,
}

/// Bytes of a step: call, six arguments, from, to, last status, last value; from 128 on how often each status came.
const STEP: u64 = 256;

/// The code that carries scripts out: RBX script, R12 steps, R13 rounds, R14 where it says that it is done.
pub fn agent() -> Snippet {
    snippet!(
        "2:",
        "mov rcx, rbx",
        "mov r11, r12",
        "3:",
        "mov rax, [rcx]",
        "mov rdi, [rcx + 8]",
        "mov rsi, [rcx + 16]",
        "mov rdx, [rcx + 24]",
        "mov r10, [rcx + 32]",
        "mov r8, [rcx + 40]",
        "mov r9, [rcx + 48]",
        "mov rbp, [rcx + 56]",
        "test rbp, rbp",
        "jz 4f",
        "mov rdi, [rbp]",
        "4:",
        "call r15",
        "mov [rcx + 72], rax",
        "mov [rcx + 80], rdx",
        "test rax, rax",
        "jnz 5f",
        "mov rbp, [rcx + 64]",
        "test rbp, rbp",
        "jz 5f",
        "mov [rbp], rdx",
        "5:",
        "cmp rax, 15",
        "jbe 6f",
        "mov eax, 15",
        "6:",
        "inc qword ptr [rcx + rax * 8 + 128]",
        "add rcx, 256",
        "dec r11",
        "jnz 3b",
        "dec r13",
        "jnz 2b",
        "mov qword ptr [r14], 1",
        "mov rdx, [r14 + 8]",
        "test rdx, rdx",
        "jnz 7f",
        "mov eax, 4",
        "xor edi, edi",
        "call r15",
        "7:",
        "mov eax, 5",
        "mov rdi, -1",
        "call r15",
        "jmp 7b",
    )
}

/// A plan for a child whose vCPUs carry out scripts.
pub fn agents(vcpus: u32) -> Plan {
    Plan {
        vcpus,
        pages: PAGES + SCRIPT_PAGES * u64::from(vcpus),
        ..Plan::new(agent())
    }
}

const fn script(vcpu: usize) -> u64 {
    SCRIPTS + vcpu as u64 * SCRIPT_PAGES * PAGE
}

/// Where a vCPU says that its script is over, and finds what comes after it.
const fn done(vcpu: usize) -> u64 {
    DATA + 0xe00 + vcpu as u64 * 16
}

impl Child {
    /// Gives a vCPU a script of at most [`STEPS`] steps, to be carried out so many times.
    pub fn load(&self, vcpu: usize, steps: &[Step], rounds: u64, after: After) -> Outcome {
        check!(steps.len() <= STEPS, "too many steps");
        let mut at = script(vcpu);
        for step in steps {
            let mut words = [0; (STEP / 8) as usize];
            words[0] = step.call.0;
            words[1..7].copy_from_slice(&step.arguments);
            words[7] = step.from;
            words[8] = step.to;
            self.write(at, bytes_of(&words))?;
            at += STEP;
        }
        self.set_word(done(vcpu), 0)?;
        self.set_word(done(vcpu) + 8, u64::from(after == After::Wait))?;
        self.set(vcpu, |state| {
            state.rip = ENTRY;
            state.rbx = script(vcpu);
            state.r12 = steps.len() as u64;
            state.r13 = rounds;
            state.r14 = done(vcpu);
        })
    }

    /// Waits until a vCPU's script is over.
    pub fn until_done(&self, vcpu: usize) -> Outcome {
        self.until_word(done(vcpu), 1)
    }

    /// The last status and value of a step.
    pub fn answer(&self, vcpu: usize, step: usize) -> Result<(Status, u64), Why> {
        let at = script(vcpu) + step as u64 * STEP;
        Ok((Status(self.word(at + 72)?), self.word(at + 80)?))
    }

    /// A step must have had this status the last time; its value.
    pub fn answered(&self, vcpu: usize, step: usize, expected: Status) -> Result<u64, Why> {
        let (status, value) = self.answer(vcpu, step)?;
        check!(
            status == expected,
            "step {step} of a child: {status:?}, expected {expected:?}"
        );
        Ok(value)
    }

    /// How often a step had each status.
    pub fn tally(&self, vcpu: usize, step: usize) -> Result<[u64; 16], Why> {
        let mut tally = [0; 16];
        for (at, place) in (script(vcpu) + step as u64 * STEP + 128..)
            .step_by(8)
            .zip(&mut tally)
        {
            *place = self.word(at)?;
        }
        Ok(tally)
    }

    /// A step must have had no other status than these.
    pub fn only(&self, vcpu: usize, step: usize, allowed: &[Status]) -> Outcome {
        for (status, times) in (0..).map(Status).zip(self.tally(vcpu, step)?) {
            check!(
                times == 0 || allowed.contains(&status),
                "vCPU {vcpu}, step {step}: {status:?} {times} times"
            );
        }
        Ok(())
    }
}

/// Lets a child with one vCPU make these calls and end; what they answered is still to be read.
pub fn lets(child: &Child, steps: &[Step]) -> Outcome {
    child.load(0, steps, 1, After::End)?;
    child.start()?;
    child.ends_with(0)
}

/// A child for [`lets`].
pub fn caller() -> Result<Child, Why> {
    Child::new(&agents(1))
}

/// A handle to something of the suite's, put into the child's table; as the child names it.
pub fn give(child: &Child, any: Any, rights: u32) -> Result<u64, Why> {
    any.grant(*child.domain, rights)
        .must("grant")
        .map(|handle| handle.0.into())
}

/// A state in which a domain can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Life {
    /// Not started.
    Created,
    /// Its vCPU spins.
    Running,
    /// It spun.
    Paused,
    /// It was killed while it spun.
    Ended,
    /// Destroyed after that.
    Destroyed,
}

/// All states, in the order of life.
pub const LIVES: [Life; 5] = [
    Life::Created,
    Life::Running,
    Life::Paused,
    Life::Ended,
    Life::Destroyed,
];

impl Child {
    /// Brings a child that is not started into a state.
    pub fn bring_to(&self, life: Life) -> Outcome {
        if life == Life::Created {
            return Ok(());
        }
        self.start()?;
        match life {
            Life::Created | Life::Running => Ok(()),
            Life::Paused => self.domain.pause().must("pause"),
            Life::Ended => self.bring_to_the_end(),
            Life::Destroyed => {
                self.bring_to_the_end()?;
                self.destroy()
            }
        }
    }

    /// Kills it.
    pub fn bring_to_the_end(&self) -> Outcome {
        self.domain.kill().must("kill")?;
        self.ends(Reason::KILLED).map(drop)
    }
}
