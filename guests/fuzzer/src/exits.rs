//! Random instructions. A victim has pages of them, in slots: registers get interesting values, then come a few instructions that mostly
//! exit, and what is left is filled with breakpoints. Every vector leads to a handler that goes on with the next slot, so that one victim
//! gets through many. It runs in any mode, as a plain domain or as a PC, with memory, devices that the suite serves, interrupt controllers
//! and nothing close to each other.
//!
//! A victim may end as it likes, but not by what is a fault of the kernel.

use core::mem::offset_of;

use plinth_rt::abi::device::{Slot, kind, line};
use plinth_rt::abi::domain::platform;
use plinth_rt::abi::domain::{EXIT_NAMES, EXITS};
use plinth_rt::abi::{Claim, DomainState, Reason, Segment, Status, VcpuState};
use plinth_rt::object::{self, Event, Memory, bytes_of};
use plinth_rt::quirks::is_tcg;
use plinth_rt::{Outcome, Why, check, hypercall, println};
use plinth_testkit::child::{Child, Plan, real_mode, spin};
use plinth_testkit::kit::{MS, Must, event, memory};
use plinth_testkit::runner::watched;
use plinth_testkit::window::Mapped;

use crate::dice::Dice;
use crate::orders::{Again, Orders};

/// Victims of a run.
const VICTIMS: u64 = 1_000;
/// Victims of a round.
const EACH: u64 = 100;
/// A victim is ended when it has begun so many slots, when it was looked at so often, or so often while it did not come to the next slot:
/// looks, not time, for the computer under an emulator has other things to do, too.
const SLOTS_RUN: u64 = 256;
const LOOKS: u64 = 100;
const IDLE_LOOKS: u64 = 10;

const PAGE: u64 = 4096;
/// Pages of a victim.
const PAGES: u64 = 32;

// A victim's memory. At 0 is its page table, which is all of its levels, or its table of interrupts in real mode.
const HANDLER: u64 = 0x1000;
const GDT: u64 = 0x1800;
/// How many slots were begun.
const COUNTER: u64 = 0x2000;
const IDT: u64 = 0x3000;
const TSS: u64 = 0x4000;
/// The four top entries of PAE paging.
const POINTERS: u64 = 0x5000;
const STACK: u64 = 0x8000;
const SLOTS: u64 = 0x8000;
/// There are so many, of so many bytes.
const COUNT: u64 = 128;
const SLOT: u64 = 64;

/// What the suite serves: addresses, and ports.
const DEVICE: u64 = 0x2_0000;
const DEVICE_PAGES: u64 = 2;
const PORTS: u64 = 0x40;
const PORT_COUNT: u64 = 16;

const LOCAL_APIC: u64 = 0xfee0_0000;
const IO_APIC: u64 = 0xfec0_0000;

/// The mode in which a victim begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Long,
    Compatibility,
    /// Protected mode without paging, with that of 32 bits, and with PAE.
    Protected,
    Paged,
    Pae,
    Virtual8086,
    Real,
}

const MODES: [Mode; 12] = [
    Mode::Long,
    Mode::Long,
    Mode::Long,
    Mode::Long,
    Mode::Compatibility,
    Mode::Paged,
    Mode::Paged,
    Mode::Pae,
    Mode::Pae,
    Mode::Protected,
    Mode::Virtual8086,
    Mode::Real,
];

impl Mode {
    const fn is_long(self) -> bool {
        matches!(self, Self::Long | Self::Compatibility)
    }

    const fn is_paged(self) -> bool {
        matches!(
            self,
            Self::Long | Self::Compatibility | Self::Paged | Self::Pae
        )
    }

    /// Its code has segments and offsets of 16 bits.
    const fn is_16(self) -> bool {
        matches!(self, Self::Real | Self::Virtual8086)
    }
}

/// The handler of 32 and 64 bits: flat segments and a fresh stack, and on to the next slot.
const HANDLER_32: [u8; 42] = [
    0xb8, 0x10, 0, 0, 0, // mov eax, 0x10
    0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // mov ds, ax; mov es, ax; mov ss, ax
    0xbc, 0x00, 0x80, 0, 0, // mov esp, STACK
    0xff, 0x04, 0x25, 0x00, 0x20, 0, 0, // inc dword ptr [COUNTER]
    0x8b, 0x04, 0x25, 0x00, 0x20, 0, 0, // mov eax, [COUNTER]
    0x83, 0xe0, 0x7f, // and eax, COUNT - 1
    0xc1, 0xe0, 0x06, // shl eax, 6
    0x80, 0xc4, 0x80, // add ah, SLOTS >> 8
    0xff, 0xe0, // jmp eax, or jmp rax
    0xcc,
];

/// The same of 16 bits.
const HANDLER_16: [u8; 29] = [
    0x31, 0xc0, // xor ax, ax
    0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, // mov ds, ax; mov es, ax; mov ss, ax
    0xbc, 0x00, 0x80, // mov sp, STACK
    0xff, 0x06, 0x00, 0x20, // inc word ptr [COUNTER]
    0xa1, 0x00, 0x20, // mov ax, [COUNTER]
    0x83, 0xe0, 0x7f, // and ax, COUNT - 1
    0xc1, 0xe0, 0x06, // shl ax, 6
    0x80, 0xc4, 0x80, // add ah, SLOTS >> 8
    0xff, 0xe0, // jmp ax
];

/// MSRs that are there in one or the other mode, on one or the other machine, and neighbours of theirs.
const MSRS: [u32; 34] = [
    0x10,
    0x1b,
    0x3a,
    0x3b,
    0x48,
    0x49,
    0x8b,
    0xfe,
    0x174,
    0x175,
    0x176,
    0x179,
    0x1a0,
    0x1d9,
    0x200,
    0x277,
    0x2ff,
    0x345,
    0x480,
    0x6e0,
    0x802,
    0x808,
    0x80b,
    0x80f,
    0x830,
    0x832,
    0x838,
    0x83f,
    0xc000_0081,
    0xc000_0082,
    0xc000_0100,
    0xc000_0103,
    0xc001_0015,
    0xc001_0114,
];
/// Those that tell a PC the time.
const CLOCKS: [u32; 3] = [0x4b56_4d00, 0x4b56_4d01, 0x4b56_4d03];
const EFER: u32 = 0xc000_0080;

/// Opcodes with a ModR/M byte that are emulated where they meet a device.
const EMULATED: [&[u8]; 27] = [
    &[0x88],
    &[0x89],
    &[0x8a],
    &[0x8b],
    &[0xc6],
    &[0xc7],
    &[0x00],
    &[0x01],
    &[0x02],
    &[0x03],
    &[0x08],
    &[0x13],
    &[0x1b],
    &[0x21],
    &[0x29],
    &[0x31],
    &[0x38],
    &[0x3b],
    &[0x80],
    &[0x81],
    &[0x83],
    &[0x84],
    &[0x86],
    &[0x87],
    &[0x0f, 0xb6],
    &[0x0f, 0xbf],
    &[0x0f, 0xc3],
];
/// Others, which end their domain there.
const NOT_EMULATED: [&[u8]; 13] = [
    &[0xf6],
    &[0xf7],
    &[0xfe],
    &[0xff],
    &[0x8f],
    &[0x0f, 0xb1],
    &[0x0f, 0xc1],
    &[0x0f, 0xc7],
    &[0x0f, 0x10],
    &[0x0f, 0x7f],
    &[0x0f, 0xae],
    &[0xd9],
    &[0x62],
];

/// How often what any instruction may use is the address of no memory: seldom, for most of them end their domain there.
const REGISTER_ODDS: u64 = 24;
/// The same of instructions that are emulated.
const DEVICE_ODDS: u64 = 2;

/// Instructions of fixed bytes.
const FIXED: [&[u8]; 40] = [
    &[0x0f, 0xa2],
    &[0x0f, 0x30],
    &[0x0f, 0x32],
    &[0x0f, 0x31],
    &[0x0f, 0x33],
    &[0x0f, 0x06],
    &[0x0f, 0x08],
    &[0x0f, 0x09],
    &[0x0f, 0xaa],
    &[0x0f, 0x05],
    &[0x0f, 0x07],
    &[0x0f, 0x34],
    &[0x0f, 0x35],
    &[0x0f, 0x37],
    &[0xf4],
    &[0xfb, 0xf4],
    &[0xfa],
    &[0xfb],
    &[0xcc],
    &[0xf1],
    &[0xce],
    &[0x9c],
    &[0x9d],
    &[0xcf],
    &[0xcb],
    &[0xc9],
    &[0x17],
    &[0x0f, 0x01, 0xd0],
    &[0x0f, 0x01, 0xd1],
    &[0x0f, 0x01, 0xc1],
    &[0x0f, 0x01, 0xd9],
    &[0x0f, 0x01, 0xf8],
    &[0x0f, 0x01, 0xf9],
    &[0x0f, 0x01, 0xc8],
    &[0x0f, 0x01, 0xc9],
    &[0x0f, 0x01, 0xd8],
    &[0x0f, 0x01, 0xdd],
    &[0xf3, 0x90],
    &[0x0f, 0x0b],
    &[0x0f, 0x1f, 0x00],
];

const PREFIXES: [u8; 11] = [
    0x66, 0x67, 0xf0, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65,
];

/// Makes instructions.
struct Maker {
    dice: Dice,
    mode: Mode,
    is_pc: bool,
    is_tcg: bool,
}

/// A slot that is being filled.
struct Code {
    bytes: [u8; SLOT as usize],
    used: usize,
}

impl Code {
    /// Adds bytes; what has no room is left out.
    fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
    }
}

impl Maker {
    fn byte(&mut self) -> u8 {
        self.dice.number() as u8
    }

    /// An address in memory; once in so many times one at which something else may be.
    fn address(&mut self, odds: u64) -> u64 {
        let offset = match self.dice.below(4) {
            0 => self.dice.one(&[0, 1, 0xff8, 0xffc, 0xffe, 0xfff]),
            1 => self.dice.one(&[
                0x10, 0x20, 0x80, 0xb0, 0xf0, 0x300, 0x310, 0x320, 0x350, 0x380, 0x390, 0x3e0,
            ]),
            _ => self.dice.below(PAGE),
        };
        // Not the pages that the victim needs, mostly: what is behind the slots.
        let memory = match self.dice.below(16) {
            0 => self.dice.below(PAGES),
            _ => 10 + self.dice.below(PAGES - 10),
        };
        let page = if !self.dice.once_in(odds) {
            memory
        } else if self.mode.is_paged() {
            // The table says what is there.
            PAGES + self.dice.below(PAGES)
        } else {
            match self.dice.below(32) {
                0 => PAGES + DEVICE_PAGES,
                1..10 if self.is_pc => LOCAL_APIC / PAGE,
                10..14 if self.is_pc => IO_APIC / PAGE,
                _ => DEVICE / PAGE + self.dice.below(DEVICE_PAGES),
            }
        };
        page * PAGE + offset
    }

    fn msr(&mut self) -> u32 {
        match self.dice.below(8) {
            0 if self.is_pc => self.dice.one(&CLOCKS),
            // QEMU does not survive EFER.LME without CR4.PAE (docs/testing.md).
            1 if self.mode.is_long() || !self.is_tcg => EFER,
            _ => self.dice.one(&MSRS),
        }
    }

    /// A value for a register.
    fn value(&mut self, register: u8) -> u64 {
        match (register, self.dice.below(4)) {
            // ECX: an MSR, a count.
            (1, 0) => self.msr().into(),
            (1, 1) => self.dice.below(40),
            // EDX: a port, the upper half of an MSR.
            (2, 0 | 1) => self.dice.one(&[
                PORTS,
                PORTS + 15,
                PORTS - 1,
                0x70,
                0x3f8,
                0xcf8,
                0xffff,
                0xe9,
            ]),
            (2, 2) => 0,
            (_, 0) => self.dice.interesting(),
            _ => self.address(REGISTER_ODDS),
        }
    }

    /// Fills a slot.
    fn slot(&mut self) -> [u8; SLOT as usize] {
        let mut code = Code {
            bytes: [0xcc; SLOT as usize],
            used: 0,
        };
        for _ in 0..self.dice.below(4) {
            let register = self.byte() & 7;
            // Not the stack pointer, mostly.
            if register == 4 && !self.dice.once_in(8) {
                continue;
            }
            let value = self.value(register).to_le_bytes();
            if self.mode.is_16() {
                // With a prefix, and so of 32 bits.
                code.add(&[0x66]);
            }
            code.add(&[0xb8 | register]);
            code.add(&value[..4]);
        }
        for _ in 0..1 + self.dice.below(4) {
            self.instruction(&mut code);
        }
        if self.is_tcg {
            forget_watchpoints(&mut code.bytes);
        }
        code.bytes
    }

    fn instruction(&mut self, code: &mut Code) {
        if self.dice.once_in(4) {
            code.add(&[self.dice.one(&PREFIXES)]);
        }
        if self.mode == Mode::Long && self.dice.once_in(3) {
            code.add(&[0x40 | self.byte() & 15]);
        }
        match self.dice.below(16) {
            0 => {
                // MOV from and to control and debug registers.
                let direction = 0x20 | self.byte() & 3;
                let register = self.dice.one(&[0, 0, 2, 3, 4, 4, 6, 7]);
                code.add(&[0x0f, direction, 0xc0 | register << 3 | self.byte() & 7]);
            }
            1..=3 => {
                let bytes = self.dice.one(&FIXED);
                code.add(bytes);
            }
            4 => {
                // Groups 6 and 7, 8, 9, 15.
                let opcode = self.dice.one(&[0x00, 0x01, 0x01, 0xba, 0xc7, 0xae]);
                code.add(&[0x0f, opcode]);
                self.operand(code, REGISTER_ODDS);
            }
            5 => {
                // IN and OUT by a number, and by DX.
                let opcode = 0xe4 | self.byte() & 0x0b;
                code.add(&[opcode]);
                if opcode & 8 == 0 {
                    code.add(&[PORTS as u8 + (self.byte() & 0x1f)]);
                }
            }
            6 => {
                let opcode = 0x6c | self.byte() & 3;
                self.repeat(code);
                code.add(&[opcode]);
            }
            7 => {
                let opcode = self
                    .dice
                    .one(&[0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf]);
                self.repeat(code);
                code.add(&[opcode]);
            }
            8..=12 => {
                let (opcode, odds) = match self.dice.below(8) {
                    0 => (self.dice.one(&NOT_EMULATED), REGISTER_ODDS),
                    _ => (self.dice.one(&EMULATED), DEVICE_ODDS),
                };
                code.add(opcode);
                self.operand(code, odds);
                // An immediate, if it takes one.
                let more = self.dice.number().to_le_bytes();
                code.add(&more[..self.dice.one(&[0, 1, 4])]);
            }
            13 => self.far(code),
            14 => {
                // Segment registers.
                let opcode = self.dice.one(&[
                    &[0x8e][..],
                    &[0x8c],
                    &[0x0f, 0xb4],
                    &[0x0f, 0xb2],
                    &[0x0f, 0xa1],
                ]);
                code.add(opcode);
                self.operand(code, REGISTER_ODDS);
            }
            _ => {
                for _ in 0..1 + self.dice.below(8) {
                    let byte = self.byte();
                    code.add(&[byte]);
                }
            }
        }
    }

    fn repeat(&mut self, code: &mut Code) {
        match self.dice.below(4) {
            0 => {}
            1 => code.add(&[0xf2]),
            _ => code.add(&[0xf3]),
        }
    }

    /// A ModR/M byte and what follows it; mostly of memory.
    fn operand(&mut self, code: &mut Code, odds: u64) {
        let mut byte = self.byte();
        if byte >= 0xc0 && !self.dice.once_in(3) {
            byte &= 0x3f;
        }
        if odds == DEVICE_ODDS && byte < 0xc0 && self.dice.once_in(2) {
            // By its address alone.
            let address = self.address(odds).to_le_bytes();
            byte &= 0x38;
            if self.mode.is_16() {
                code.add(&[byte | 6]);
                code.add(&address[..2]);
            } else {
                code.add(&[byte | 4, 0x25]);
                code.add(&address[..4]);
            }
            return;
        }
        code.add(&[byte]);
        let (mode, rm) = (byte >> 6, byte & 7);
        if mode == 3 {
            return;
        }
        if !self.mode.is_16() && rm == 4 {
            // Mostly without an index.
            let sib = if self.dice.once_in(2) {
                0x20 | self.byte() & 7
            } else {
                self.byte()
            };
            code.add(&[sib]);
        }
        let address = self.address(odds).to_le_bytes();
        match (mode, self.mode.is_16()) {
            (0, false) if rm == 5 => code.add(&address[..4]),
            (0, true) if rm == 6 => code.add(&address[..2]),
            (1, _) => code.add(&[self.byte()]),
            (2, false) => code.add(&[self.byte(), self.byte() & 3, 0, 0]),
            (2, true) => code.add(&[self.byte(), self.byte() & 3]),
            _ => {}
        }
    }

    /// Far jumps, calls and returns, and interrupts by software.
    fn far(&mut self, code: &mut Code) {
        let selector = self
            .dice
            .one(&[8, 0x10, 0x1b, 0x28, 0x38, 0x40, 0x50, 0x58, 0x60, 0xffff])
            as u16;
        match self.dice.below(6) {
            0 | 1 => {
                code.add(&[self.dice.one(&[0x9a, 0xea])]);
                let offset = (SLOTS + SLOT * self.dice.below(COUNT)).to_le_bytes();
                code.add(&offset[..if self.mode.is_16() { 2 } else { 4 }]);
                code.add(&selector.to_le_bytes());
            }
            2 => {
                let number = self.byte();
                code.add(&[0xcd, number]);
            }
            3 => {
                // By a pointer on the stack: PUSH of a selector and of an offset.
                code.add(&[0x6a, selector as u8, 0x6a, 0x40, 0xcb]);
            }
            4 => {
                // LTR and LLDT.
                let which = self.dice.one(&[0xd8, 0xd0]);
                code.add(&[0xb8]);
                code.add(&selector.to_le_bytes());
                code.add(&[0, 0, 0x0f, 0x00, which]);
            }
            _ => {
                code.add(&[0xff, self.dice.one(&[0x1d, 0x2d, 0x18, 0x28, 0x1e])]);
                let address = self.address(REGISTER_ODDS).to_le_bytes();
                code.add(&address[..4]);
            }
        }
    }

    /// A page of what is a victim's: present or not, memory or not.
    fn entry(&mut self, page: u64) -> u64 {
        // Present, writable, for all.
        let flags = 7;
        let memory = 10 + self.dice.below(PAGES - 10);
        if page < PAGES {
            return (page * PAGE) | flags;
        }
        match self.dice.below(32) {
            0..4 => 0,
            4 => (memory * PAGE) | 5,
            5 => (memory * PAGE) | 3,
            6 => (memory * PAGE) | flags | 1 << 63,
            7 if self.dice.once_in(4) => ((PAGES + DEVICE_PAGES) * PAGE) | flags,
            8 if self.dice.once_in(4) => 1 << 45 | flags,
            9..13 if self.is_pc => LOCAL_APIC | flags,
            13..16 if self.is_pc => IO_APIC | flags,
            9..22 => (DEVICE + PAGE * self.dice.below(DEVICE_PAGES)) | flags,
            _ => (memory * PAGE) | flags,
        }
    }

    /// The page at 0.
    fn first_page(&mut self) -> [u8; PAGE as usize] {
        let mut page = [0; PAGE as usize];
        match self.mode {
            Mode::Long | Mode::Compatibility | Mode::Pae => {
                for (index, place) in (0..).zip(page.chunks_exact_mut(8)) {
                    let mut entry = if index == 0 { 7 } else { self.entry(index) };
                    if index < 4 {
                        // What is a table on the way down must be one that works.
                        entry = (index * PAGE) | 7;
                    }
                    place.copy_from_slice(&entry.to_le_bytes());
                }
            }
            Mode::Paged => {
                for (index, place) in (0..).zip(page.chunks_exact_mut(4)) {
                    let entry = if index == 0 {
                        7
                    } else {
                        self.entry(index) as u32
                    };
                    place.copy_from_slice(&entry.to_le_bytes());
                }
            }
            Mode::Real | Mode::Protected | Mode::Virtual8086 => {
                for place in page.chunks_exact_mut(4) {
                    place.copy_from_slice(&(HANDLER as u32).to_le_bytes());
                }
            }
        }
        page
    }

    /// The state in which the victim begins, without what is random.
    fn base(&self) -> VcpuState {
        let mut state = match self.mode {
            Mode::Long | Mode::Compatibility => VcpuState::long_mode(SLOTS, STACK, 0),
            Mode::Real => real_mode(SLOTS),
            _ => VcpuState::protected_mode(SLOTS as u32),
        };
        state.rsp = STACK;
        match self.mode {
            Mode::Long | Mode::Protected => {}
            Mode::Compatibility => state.cs.attributes = Segment::CODE32,
            Mode::Paged => state.cr0 |= 1 << 31,
            Mode::Pae => {
                state.cr0 |= 1 << 31;
                state.cr4 |= 1 << 5;
                state.cr3 = POINTERS;
            }
            Mode::Virtual8086 => {
                state.rflags |= 1 << 17;
                for (place, base) in [
                    (&mut state.cs, 0),
                    (&mut state.ss, 0),
                    (&mut state.ds, 0),
                    (&mut state.es, 0),
                    (&mut state.fs, DEVICE),
                    (&mut state.gs, DEVICE),
                ] {
                    *place = Segment {
                        selector: (base >> 4) as u16,
                        attributes: 0xf3,
                        limit: 0xffff,
                        base,
                    };
                }
            }
            Mode::Real => {
                for place in [&mut state.fs, &mut state.gs] {
                    place.selector = (DEVICE >> 4) as u16;
                    place.base = DEVICE;
                }
                return state;
            }
        }
        state.gdtr.base = GDT;
        state.gdtr.limit = 16 * 8 - 1;
        state.idtr.base = IDT;
        state.idtr.limit = 0xfff;
        // QEMU ends where an exception leaves CPL 3 in protected mode by a task register that says that its TSS is busy, as it does on
        // every CPU (docs/testing.md).
        let is_busy = if self.is_tcg && !self.mode.is_long() {
            0
        } else {
            2
        };
        state.tr = Segment {
            selector: 0x28,
            attributes: Segment::TSS_BUSY & !2 | is_busy,
            limit: 0x67,
            base: TSS,
        };
        state
    }

    /// The same with random registers, flags and features.
    fn state(&mut self) -> VcpuState {
        let mut state = self.base();
        for register in [
            &mut state.rax,
            &mut state.rcx,
            &mut state.rdx,
            &mut state.rbx,
            &mut state.rbp,
            &mut state.rsi,
            &mut state.rdi,
            &mut state.r8,
            &mut state.r9,
            &mut state.r15,
        ] {
            let like = self.dice.one(&[0, 0, 1, 2]);
            *register = self.value(like);
        }
        // DF, IOPL, NT, RF, AC, ID; mostly IF, so that what spins can be interrupted; seldom TF.
        state.rflags |= self.dice.number() & 0x25_7400;
        if !self.dice.once_in(8) {
            state.rflags |= 1 << 9;
        }
        if self.dice.once_in(16) {
            state.rflags |= 1 << 8;
        }
        if self.mode == Mode::Virtual8086 {
            state.rflags |= 0x3000;
        }
        // MP, EM, TS, NE, WP, AM.
        state.cr0 |= self.dice.number() & self.dice.number() & 0x5_002e;
        // TSD, DE, PSE, PGE, PCE, OSFXSR, OSXMMEXCPT, UMIP, FSGSBASE, OSXSAVE. SMEP and SMAP would leave nothing of a victim, whose pages are
        // all open to CPL 3.
        state.cr4 |= self.dice.number() & self.dice.number() & 0x5_0f9c;
        state.efer |= self.dice.number() & 0x801;
        if self.dice.once_in(4) && !self.mode.is_16() {
            // CPL 3.
            state.cs.selector |= 3;
            state.cs.attributes |= 0x60;
            state.ss.selector |= 3;
            state.ss.attributes |= 0x60;
        }
        state
    }
}

/// Makes what could set a watchpoint something else: QEMU ends by a failed assertion where one is met in the delivery of an exception
/// (docs/testing.md).
fn forget_watchpoints(code: &mut [u8]) {
    for index in 1..code.len() {
        if code[index - 1] == 0x0f && code[index] == 0x23 {
            code[index] = 0x21;
        }
    }
}

/// Gates, descriptors and the handler of a victim.
fn tables(maker: &Maker) -> ([u8; PAGE as usize], [u8; PAGE as usize], [u8; 0x68]) {
    let is_long = maker.mode.is_long();
    let mut code = [0xcc; PAGE as usize];
    let handler: &[u8] = if maker.mode == Mode::Real {
        &HANDLER_16
    } else {
        &HANDLER_32
    };
    for (place, byte) in code.iter_mut().zip(handler) {
        *place = *byte;
    }
    // Code for CPL 0, data, code and data for CPL 3.
    let kernel_code: u64 = if is_long {
        0x00af_9b00_0000_ffff
    } else {
        0x00cf_9b00_0000_ffff
    };
    let tss = 0x89 << 40 | TSS << 16 | 0x67;
    // A gate of a call, and of a task.
    let call_gate = HANDLER | 8 << 16 | 0xec << 40;
    let descriptors = [
        0,
        kernel_code,
        0x00cf_9300_0000_ffff,
        kernel_code | 0x60 << 40,
        0x00cf_f300_0000_ffff,
        // 0x28: the TSS, and its upper half in long mode. 0x38: one more.
        tss,
        0,
        tss,
        // 0x40: a gate of a call, and its upper half. 0x50: an LDT. 0x58: a gate of a task.
        call_gate,
        0,
        0x82 << 40 | GDT << 16 | 0x7f,
        0xe5 << 40 | 0x38 << 16,
        // 0x60: code of 16 bits.
        0x0000_9b00_0000_ffff,
    ];
    for (place, word) in code
        .chunks_exact_mut(8)
        .skip((GDT - HANDLER) as usize / 8)
        .zip(descriptors)
    {
        place.copy_from_slice(&u64::to_le_bytes(word));
    }
    let mut gates = [0; PAGE as usize];
    // Trap gates leave interrupts on.
    let gate = HANDLER | 8 << 16 | 0xef << 40;
    let step = if is_long { 16 } else { 8 };
    for place in gates.chunks_exact_mut(step) {
        if let Some(place) = place.first_chunk_mut() {
            *place = u64::to_le_bytes(gate);
        }
    }
    let mut tss = [0; 0x68];
    // RSP0, or ESP0 and SS0.
    tss[5] = (STACK >> 8) as u8;
    if !is_long {
        tss[8] = 0x10;
    }
    tss[0x66] = 0x68;
    (code, gates, tss)
}

/// What serves the victims' devices.
struct Server {
    event: Event,
    slots: Memory,
    mapped: Mapped,
}

impl Server {
    fn claim(&self, child: &Child, kind: u32, first: u64, length: u64) -> Outcome {
        let claim = Claim {
            kind,
            memory: self.slots.0.0,
            event: self.event.0.0,
            reserved: 0,
            first,
            length,
            tag: 0,
        };
        child.domain.claim(&claim).must("claim")
    }
}

/// What became of victims.
#[derive(Default)]
struct Tally {
    /// How many ended for each reason.
    ends: [u64; REASONS],
    /// Slots that were begun.
    slots: u64,
    /// Exits by kind.
    exits: [u64; EXITS],
}

/// Reasons of an end.
const REASONS: usize = 11;

impl Tally {
    fn print(&self) {
        for (reason, count) in (0..).map(Reason).zip(self.ends) {
            if count != 0 {
                println!("note: {count} victims: {}", reason.text());
            }
        }
        println!("note: {} slots", self.slots);
        for (name, count) in EXIT_NAMES.iter().zip(self.exits) {
            if count != 0 {
                println!("note: {count} exits: {name}");
            }
        }
    }
}

/// One victim: it is made, runs, and is gone.
fn victim(server: &Server, maker: &mut Maker, tally: &mut Tally, tells: bool) -> Outcome {
    let child = Child::new(&Plan {
        pages: PAGES,
        platform: if maker.is_pc { platform::PC } else { 0 },
        ..Plan::new(spin())
    })?;
    server.claim(&child, kind::MMIO, DEVICE, DEVICE_PAGES * PAGE)?;
    server.claim(&child, kind::PORTS, PORTS, PORT_COUNT)?;
    if maker.is_pc {
        server.claim(&child, kind::ACKNOWLEDGE, 0, 1)?;
    }
    let first = maker.first_page();
    child.write(0, &first)?;
    let (code, gates, tss) = tables(maker);
    child.write(HANDLER, &code)?;
    child.write(IDT, &gates)?;
    child.write(TSS, &tss)?;
    // PAE's top entries: present, and no more.
    child.write(POINTERS, bytes_of(&[1u64, 1, 1, 1]))?;
    for index in 0..COUNT {
        let slot = maker.slot();
        child.write(SLOTS + index * SLOT, &slot)?;
    }
    let state = maker.state();
    match child.vcpu(0).set_state(&state) {
        Ok(()) => {}
        Err(Status::BAD_ARGUMENT) => child.vcpu(0).set_state(&maker.base()).must("set state")?,
        Err(other) => return Err(format_args!("set state: {other:?}").into()),
    }
    if tells {
        println!(
            "{:?}, {}: {state:x?}",
            maker.mode,
            if maker.is_pc { "PC" } else { "plain" }
        );
    }
    child.start()?;
    attend(server, &child, maker)?;
    let info = child.domain.info().must("its info")?;
    if let Some(count) = tally.ends.get_mut(info.reason.0 as usize) {
        *count += 1;
    }
    // Instructions may have written it.
    tally.slots += (child.word(COUNTER)? & 0xffff).min(SLOTS_RUN);
    let vcpu = child.vcpu(0).info().must("its vCPU")?;
    if tells {
        println!(
            "{} {:x?} at {:#x}, behind {} slots and {} exits",
            info.reason.text(),
            info.info,
            info.rip,
            child.word(COUNTER)? & 0xffff,
            vcpu.exits.iter().sum::<u64>()
        );
    }
    for (sum, count) in tally.exits.iter_mut().zip(vcpu.exits) {
        *sum += count;
    }
    let is_the_kernels = matches!(
        info.reason,
        Reason::ENTRY_FAILED | Reason::UNEXPECTED_EXIT | Reason::NESTED_MISCONFIGURATION
    );
    check!(
        !is_the_kernels,
        "{:?}: {} {:x?} at {:#x}",
        maker.mode,
        info.reason.text(),
        info.info,
        info.rip
    );
    Ok(())
}

/// Serves a victim's devices, and interrupts it, until it has ended or has run for long enough; then it is ended.
fn attend(server: &Server, child: &Child, maker: &mut Maker) -> Outcome {
    let mut served = server.mapped.word(offset_of!(Slot, sequence) as u64);
    let (mut looks, mut idle, mut last) = (0, 0, 0);
    loop {
        // Whatever the answer is, the slot and the state tell what there is to do.
        let _ = object::wait(hypercall::clock() + MS / 10);
        let sequence = server.mapped.word(offset_of!(Slot, sequence) as u64);
        if sequence != served {
            served = sequence;
            // What an INS gets.
            let data = offset_of!(Slot, data) as u64;
            server.mapped.set_word(data, maker.dice.number());
            let value = maker.dice.interesting();
            match child.domain.complete(0, value) {
                // The victim may have ended meanwhile.
                Ok(()) | Err(Status::WRONG_STATE) => {}
                Err(other) => return Err(format_args!("complete: {other:?}").into()),
            }
        }
        if maker.dice.once_in(2) {
            let vector = maker.dice.one(&[32, 0x40, 0xff]);
            let _ = child.vcpu(0).interrupt(vector);
            if maker.is_pc {
                let pin = maker.dice.one(&[0, 2, 23, line::INTR]);
                let _ = child.domain.set_line(pin, maker.dice.once_in(2));
                // An NMI reaches what has its interrupts off.
                let message = maker.dice.one(&[0x400, 0x4040]);
                let _ = child.domain.send_msi(LOCAL_APIC, message);
            }
        }
        if child.is(DomainState::ENDED)? {
            return Ok(());
        }
        let begun = child.word(COUNTER)? & 0xffff;
        looks += 1;
        idle = if begun == last { idle + 1 } else { 0 };
        last = begun;
        if begun > SLOTS_RUN || looks > LOOKS || idle > IDLE_LOOKS {
            match child.domain.kill() {
                Ok(()) | Err(Status::WRONG_STATE) => {}
                Err(other) => return Err(format_args!("kill: {other:?}").into()),
            }
            return plinth_testkit::kit::until("a victim's end", || child.is(DomainState::ENDED));
        }
    }
}

/// A round of victims.
fn one_round(orders: &Orders, round: u64, tally: &mut Tally) -> Outcome {
    let (event, slots) = (event()?, memory(PAGE)?);
    event.bind(1).must("bind")?;
    let server = Server {
        event: *event,
        slots: *slots,
        mapped: Mapped::new(0, *slots, PAGE)?,
    };
    let is_tcg = is_tcg();
    for index in 0..EACH {
        let mut dice = Dice::new(orders.seed, round.wrapping_mul(EACH) + index);
        let mode = dice.one(&MODES);
        let is_pc = dice.once_in(2);
        let mut maker = Maker {
            dice,
            mode,
            is_pc,
            is_tcg,
        };
        if orders.tells {
            println!("victim {index}");
        }
        victim(&server, &mut maker, tally, orders.tells)
            .map_err(|why| Why::from(format_args!("victim {index}: {why}")))?;
    }
    Ok(())
}

/// Rounds of victims until there were so many as the orders say.
pub fn run() -> Outcome {
    let orders = Orders::given();
    if !orders.want("exits") {
        return Ok(());
    }
    let most = orders.victims.unwrap_or(VICTIMS);
    let start = hypercall::clock();
    let mut rounds = 0;
    let mut tally = Tally::default();
    while !orders.are_done(rounds, rounds * EACH, most) {
        let again = Again {
            fuzzer: "exits",
            seed: orders.seed,
            round: orders.first + rounds,
        };
        println!("{again}");
        watched(|| one_round(&orders, again.round, &mut tally))
            .map_err(|why| Why::from(format_args!("{again}: {why}")))?;
        rounds += 1;
    }
    let ms = (hypercall::clock() - start) / MS;
    println!(
        "note: {} victims in {rounds} rounds, {ms} ms",
        rounds * EACH
    );
    tally.print();
    Ok(())
}
