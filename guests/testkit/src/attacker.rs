//! Attackers: domains that run the suite's own image, a copy of it as it was when it started, so that an attack is a function of this
//! source that runs in another domain, with exception handlers and all. It tells what came of it by its exit status, its console, and
//! a page of words.
//!
//! An attacker's memory: from 0 on the pages of [`ORDERS`] and [`TOLD`] and free pages, from 1 MiB on the image, at the top page tables
//! and stacks, as for every guest (`docs/abi.md`). Its linear addresses are its guest-physical ones and reach 1 GiB far, memory or
//! not.

#![allow(
    unsafe_code,
    reason = "copies of the own image, and functions by their addresses"
)]

use core::ops::Deref;

use plinth_rt::abi::call::access;
use plinth_rt::abi::{
    DomainConfig, DomainInfo, DomainState, Handle, Reason, StreamHeader, VcpuState,
};
use plinth_rt::object::{Any, Memory, Vcpu, bytes_of};
use plinth_rt::{
    Gprs, Outcome, Snippet, Trap, Why, check, check_eq, gdt, hypercall, println, trap,
};

use crate::child::{Temporary, bytes, config};
use crate::kit::{Must, Owned, patiently, until};

/// Bytes of an attacker's memory.
pub const RAM: u64 = 2 << 20;
/// Where the image begins.
const IMAGE: u64 = 1 << 20;
/// Where the suite keeps the image as it was: far above what it uses itself.
const PRISTINE: u64 = 8 << 20;
/// What an attacker is to do: the address of a function, and words for it.
const ORDERS: u64 = 0x1000;
/// The words of [`Attacker::order`].
const WORDS: u64 = ORDERS + 8;
/// The words of [`tell`].
const TOLD: u64 = 0x2000;
/// Free pages of an attacker: from here to the image.
pub const FREE: u64 = 0x1_0000;

const PAGE: u64 = 4096;
/// Where the tables are: root, pointers, directory.
pub const TABLES: u64 = RAM - 3 * PAGE;
/// The lowest stack pointer at the start; the first vCPU's stack is the highest.
const STACK: u64 = TABLES;
/// Bytes of the first vCPU's stack, and of each other's below it.
const STACKS: [u64; 2] = [0x1_8000, 0x1000];
/// Most vCPUs that an attacker is made with.
const VCPUS: usize = 4;

/// The status by which an attacker says that it found something otherwise than it must be.
const STATUS_FOUND: u64 = 1;

unsafe extern "C" {
    /// The end of the image, of the linker script's making.
    static guest_end: u8;
}

/// Where the image ends, a multiple of the page size: the memory from there to the stacks is an attacker's free memory, too.
pub fn image_end() -> u64 {
    ((&raw const guest_end) as u64).next_multiple_of(PAGE)
}

fn image_bytes() -> usize {
    (image_end() - IMAGE) as usize
}

/// Keeps a copy of the image. To be called before anything has been written to its variables but by the runtime's start, which every
/// attacker does itself.
pub fn keep_image() {
    // SAFETY: the image lies in one piece from 1 MiB to its end, in the suite's memory, which is far larger; nothing else lies where the
    // copy goes.
    unsafe {
        core::ptr::copy_nonoverlapping(IMAGE as *const u8, PRISTINE as *mut u8, image_bytes())
    };
}

fn image() -> &'static [u8] {
    // SAFETY: nothing writes to the copy after `keep_image`.
    unsafe { core::slice::from_raw_parts(PRISTINE as *const u8, image_bytes()) }
}

/// A word at a low address of the own memory.
fn word(address: u64) -> u64 {
    // SAFETY: the suite and its attackers have memory there that holds nothing of Rust's.
    unsafe { (address as *const u64).read_volatile() }
}

/// In an attacker: carries out the order and does not return. In the suite itself there is none.
pub fn obey() {
    let attack = word(ORDERS);
    if attack == 0 {
        return;
    }
    // SAFETY: the suite wrote the address of a function of this type, which has the same address in every copy of the image.
    let attack: fn() -> Outcome = unsafe { core::mem::transmute(attack) };
    let outcome = trap::catch(attack).unwrap_or_else(|trap| Err(trap.into()));
    let Err(why) = outcome else {
        hypercall::end(0);
    };
    println!("{why}");
    hypercall::end(STATUS_FOUND)
}

/// In an attacker: a word that came with the order.
pub fn ordered(index: u64) -> u64 {
    word(WORDS + index * 8)
}

/// In an attacker: a word of its memory.
pub fn peek(address: u64) -> u64 {
    word(address)
}

/// In an attacker: sets a word of its memory, which is its own affair.
pub fn poke(address: u64, value: u64) {
    // SAFETY: an attacker may break itself; nobody else can see its memory.
    unsafe { (address as *mut u64).write_volatile(value) }
}

/// Registers with this in RDI, the rest zero.
pub const fn at(rdi: u64) -> Gprs {
    Gprs { rdi, ..Gprs::ZERO }
}

/// What should not have come back.
pub trait Unexpected {
    /// The failure, in words.
    fn into_unexpected(self) -> Outcome;
}

impl Unexpected for Result<Gprs, Trap> {
    fn into_unexpected(self) -> Outcome {
        match self {
            Ok(_) => Err(format_args!("it came back without an exception").into()),
            Err(trap) => Err(trap.into()),
        }
    }
}

/// In an attacker: leaves a word for the suite to read.
pub fn tell(index: u64, value: u64) {
    // SAFETY: as in `word`.
    unsafe { ((TOLD + index * 8) as *mut u64).write_volatile(value) }
}

/// In an attacker: a word of those that were left, by itself or another vCPU.
pub fn heard(index: u64) -> u64 {
    word(TOLD + index * 8)
}

/// The address of a word that [`tell`] writes, for assembled code.
pub const fn told_at(index: u64) -> u64 {
    TOLD + index * 8
}

/// What an attacker is made of.
#[derive(Clone, Copy)]
pub struct Plan {
    /// What its first vCPU does.
    pub attack: fn() -> Outcome,
    /// What machine it sees.
    pub platform: u32,
    /// Most vCPUs.
    pub vcpus: u32,
    /// Budget of frames besides its memory.
    pub frames: u64,
    /// Budget of kernel heap.
    pub heap: u64,
    /// Budget of handles.
    pub handles: u32,
}

impl Plan {
    /// One vCPU and little more.
    pub const fn new(attack: fn() -> Outcome) -> Self {
        Self {
            attack,
            platform: 0,
            vcpus: 1,
            frames: 64,
            heap: DomainConfig::usual_heap(4),
            handles: 32,
        }
    }

    /// With another machine.
    pub const fn on(self, platform: u32) -> Self {
        Self { platform, ..self }
    }

    /// With so many vCPUs at most.
    pub const fn with_vcpus(self, vcpus: u32) -> Self {
        Self { vcpus, ..self }
    }
}

/// An attacker; ended and taken back when it is dropped.
pub struct Attacker {
    /// Its domain.
    pub domain: Temporary,
    /// Its memory, charged to it.
    pub memory: Owned<Memory>,
    vcpus: [Option<Owned<Vcpu>>; VCPUS],
}

impl Attacker {
    /// Makes one with its first vCPU; it is ready to start.
    pub fn new(plan: &Plan) -> Result<Self, Why> {
        let domain = Temporary::new(&DomainConfig {
            frames: RAM / PAGE + plan.frames,
            heap: plan.heap,
            handles: plan.handles,
            vcpus: plan.vcpus,
            platform: plan.platform,
            ..config(b"attacker")
        })?;
        let memory = domain.create_memory(RAM).must("its memory").map(Owned)?;
        domain
            .map(0, *memory, 0, RAM, access::ALL)
            .must("map its memory")?;
        let mut attacker = Self {
            domain,
            memory,
            vcpus: [const { None }; VCPUS],
        };
        attacker.write(IMAGE, image())?;
        attacker.write(TABLES, &((TABLES + PAGE) | 3).to_le_bytes())?;
        attacker.write(TABLES + PAGE, &((TABLES + 2 * PAGE) | 3).to_le_bytes())?;
        // Present, writable, large.
        let directory: [u64; 512] = core::array::from_fn(|index| (index as u64) << 21 | 0x83);
        attacker.write(TABLES + 2 * PAGE, bytes_of(&directory))?;
        attacker.write(ORDERS, &(plan.attack as usize as u64).to_le_bytes())?;
        let entry = plinth_rt::entry_point();
        attacker.add_vcpu(entry, |state| state.rdi = RAM)?;
        Ok(attacker)
    }

    /// Adds a vCPU that starts in long mode at an address, with a small stack of its own.
    fn add_vcpu(&mut self, entry: u64, change: impl FnOnce(&mut VcpuState)) -> Outcome {
        let index = self.vcpus.iter().position(Option::is_none);
        let Some((index, place)) =
            index.and_then(|index| Some((index as u64, self.vcpus.get_mut(index)?)))
        else {
            return Err(format_args!("no place for a vCPU").into());
        };
        let below = if index == 0 {
            0
        } else {
            STACKS[0] + (index - 1) * STACKS[1]
        };
        let vcpu = self.domain.create_vcpu().must("create vCPU").map(Owned)?;
        let mut state = VcpuState::long_mode(entry, STACK - below, TABLES);
        change(&mut state);
        vcpu.set_state(&state).must("set state")?;
        *place = Some(vcpu);
        Ok(())
    }

    /// Adds a vCPU that runs these instructions, with the tables that the first one fills at its start; RDI holds the address of the words of [`tell`].
    pub fn add(&mut self, code: Snippet) -> Outcome {
        let (gdt, idt) = (gdt::table(), trap::table());
        self.add_vcpu(code.start(), |state| {
            state.rdi = TOLD;
            for (place, table) in [(&mut state.gdtr, gdt), (&mut state.idtr, idt)] {
                place.base = table.base;
                place.limit = table.limit.into();
            }
        })
    }

    /// Its vCPU of this index; one that it does not have is a handle that names nothing.
    pub fn vcpu(&self, index: usize) -> Vcpu {
        match self.vcpus.get(index) {
            Some(Some(vcpu)) => **vcpu,
            _ => Vcpu(Handle::NONE),
        }
    }

    /// Changes the state of a vCPU that does not run.
    pub fn set(&self, index: usize, change: impl FnOnce(&mut VcpuState)) -> Outcome {
        let mut state = patiently(|| self.vcpu(index).state()).must("get state")?;
        change(&mut state);
        self.vcpu(index).set_state(&state).must("set state")
    }

    /// Gives it a word with its order.
    pub fn order(&self, index: u64, value: u64) -> Outcome {
        self.write(WORDS + index * 8, &value.to_le_bytes())
    }

    /// Puts a handle into its table; as it names it.
    pub fn give(&self, any: Any, rights: u32) -> Result<u64, Why> {
        any.grant(*self.domain, rights)
            .must("grant")
            .map(|handle| handle.0.into())
    }

    /// Starts it.
    pub fn start(&self) -> Outcome {
        self.domain.start().must("start")
    }

    /// Copies bytes into its memory.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Outcome {
        self.domain.write(gpa, bytes).must("write its memory")
    }

    /// Copies instructions into its memory.
    pub fn copy(&self, gpa: u64, code: &Snippet) -> Outcome {
        self.write(gpa, bytes(code))
    }

    /// A word of its memory.
    pub fn word(&self, gpa: u64) -> Result<u64, Why> {
        let mut word = [0; 8];
        self.domain.read(gpa, &mut word).must("read its memory")?;
        Ok(u64::from_le_bytes(word))
    }

    /// A word that it left by [`tell`].
    pub fn told(&self, index: u64) -> Result<u64, Why> {
        self.word(TOLD + index * 8)
    }

    /// Waits until a word that it leaves is at least this.
    pub fn until_told(&self, index: u64, least: u64) -> Outcome {
        until("a word of the attacker", || {
            self.goes_on_or_says_why()?;
            Ok(self.told(index)? >= least)
        })
    }

    /// An attacker that has ended itself because it found something wrong fails the case in its own words.
    fn goes_on_or_says_why(&self) -> Result<bool, Why> {
        let info = self.domain.info().must("its info")?;
        if info.state != DomainState::ENDED {
            return Ok(true);
        }
        if info.reason == Reason::STATUS && info.info[0] != 0 {
            let mut text = [0; 1024];
            let says = self.says(&mut text)?;
            return Err(format_args!("attacker: {}", says.trim()).into());
        }
        Ok(false)
    }

    /// What it has written to its console.
    fn says<'a>(&self, buffer: &'a mut [u8]) -> Result<&'a str, Why> {
        let (_, bytes): (StreamHeader, &[u8]) =
            self.domain.console(buffer, 0).must("its console")?;
        Ok(core::str::from_utf8(bytes).unwrap_or("(no UTF-8)"))
    }

    /// Waits until it has ended, which must be for this reason.
    pub fn ends(&self, reason: Reason) -> Result<DomainInfo, Why> {
        until("an attacker's end", || Ok(!self.goes_on_or_says_why()?))?;
        let info = self.domain.info().must("its info")?;
        check!(
            info.reason == reason,
            "ended: {} {:x?} at {:#x}, expected: {}",
            info.reason.text(),
            info.info,
            info.rip,
            reason.text()
        );
        Ok(info)
    }

    /// Waits until it has ended itself content; what it has noted is printed.
    pub fn succeeds(&self) -> Outcome {
        check_eq!(self.ends(Reason::STATUS)?.info[0], 0, "status");
        let mut text = [0; 1024];
        for line in self.says(&mut text)?.lines() {
            println!("{line}");
        }
        Ok(())
    }

    /// Gives it a handle, whose number is the first word of its order, and lets it go on to its end, which must be content.
    pub fn succeeds_with(&self, any: Any, rights: u32) -> Outcome {
        let handle = self.give(any, rights)?;
        self.order(0, handle)?;
        self.start()?;
        self.succeeds()
    }

    /// Ends it from outside; it must have lived till then.
    pub fn is_killed(&self) -> Outcome {
        check!(self.goes_on_or_says_why()?, "it had ended by itself");
        self.domain.kill().must("kill")?;
        self.ends(Reason::KILLED).map(drop)
    }
}

/// Lets an attacker carry out this attack, which must end content.
pub fn inside(attack: fn() -> Outcome) -> Outcome {
    carried_out(&Plan::new(attack))
}

/// As [`inside`], by an attacker of this making.
pub fn carried_out(plan: &Plan) -> Outcome {
    let attacker = Attacker::new(plan)?;
    attacker.start()?;
    attacker.succeeds()
}

/// Lets an attacker carry out this attack, which must end it for this reason; `info` of the end.
pub fn fatal(attack: fn() -> Outcome, reason: Reason) -> Result<[u64; 3], Why> {
    fatal_to(&Plan::new(attack), reason)
}

/// As [`fatal`], for an attacker of this making.
pub fn fatal_to(plan: &Plan, reason: Reason) -> Result<[u64; 3], Why> {
    let attacker = Attacker::new(plan)?;
    attacker.start()?;
    Ok(attacker.ends(reason)?.info)
}

/// Lets an attacker carry out this attack, which must end it by a nested fault at this address with these bits.
pub fn faults_at(attack: fn() -> Outcome, address: u64, bits: u64) -> Outcome {
    nested_fault(&Plan::new(attack), address, bits)
}

/// As [`faults_at`], for an attacker of this making.
pub fn nested_fault(plan: &Plan, address: u64, bits: u64) -> Outcome {
    let [seen, seen_bits, _] = fatal_to(plan, Reason::NESTED_FAULT)?;
    check_eq!(seen, address, "address of the nested fault");
    check_eq!(seen_bits, bits, "bits of the nested fault");
    Ok(())
}

impl Deref for Attacker {
    type Target = Temporary;

    fn deref(&self) -> &Temporary {
        &self.domain
    }
}
