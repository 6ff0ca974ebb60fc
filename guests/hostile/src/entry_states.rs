//! States that are set from outside (`VCPU_SET_STATE`): one in which no CPU can be is refused and changes nothing, and one that is taken
//! can be entered. What then becomes of the domain is its own affair, but the CPU must not refuse it.

use plinth_rt::abi::state::part;
use plinth_rt::abi::{Call, DomainState, Reason, Segment, Status, VcpuState};
use plinth_rt::object::bytes_of;
use plinth_rt::quirks::is_tcg;
use plinth_rt::{Outcome, Scratch, Why, check, check_eq, cpu};
use plinth_testkit::child::{Child, DATA, ENTRY, Plan, STACK, count, real_mode};
use plinth_testkit::kit::{Must, Random, patiently, raw, to_the_end, until};

use crate::attacker::inside;

cases!("entry_states":
    each_bit_of_cr0,
    each_bit_of_cr3,
    each_bit_of_cr4,
    cr4_as_from_within,
    each_bit_of_efer,
    efer_as_from_within,
    each_mode_of_long_mode_bits,
    each_xcr0,
    each_bit_of_dr6_and_dr7,
    each_bit_of_rflags,
    rip_not_canonical,
    rip_above_32_bits,
    bases_not_canonical,
    limits_of_tables,
    addresses_in_msrs_not_canonical,
    each_memory_type_of_the_pat,
    each_attribute_of_cs,
    each_attribute_of_ss,
    each_attribute_of_data_segments,
    each_attribute_of_tr,
    each_attribute_of_ldtr,
    virtual_8086_segments,
    pae_tables_behind_the_end,
    random_changes_of_long_mode,
    random_changes_of_protected_mode,
    random_changes_of_real_mode,
    random_bytes,
    header_of_the_vector_state,
    mxcsr_of_the_vector_state,
    random_vector_state,
);

/// A domain whose vCPU gets one state after the other.
struct Subject {
    child: Option<Child>,
}

impl Subject {
    const fn new() -> Self {
        Self { child: None }
    }

    /// One that runs and is paused; a new one where the last has ended.
    fn child(&mut self) -> Result<&Child, Why> {
        if self.child.is_none() {
            let child = Child::running(count())?;
            child.domain.pause().must("pause")?;
            self.child = Some(child);
        }
        self.child
            .as_ref()
            .ok_or_else(|| format_args!("no child").into())
    }

    /// A legal state of long mode.
    fn long(&mut self) -> Result<VcpuState, Why> {
        let mut state = VcpuState::long_mode(ENTRY, STACK + 4096, 0);
        let child = self.child()?;
        let now = child.state(0)?;
        state.gdtr = now.gdtr;
        state.idtr = now.idtr;
        Ok(state)
    }

    /// Sets this state, and lets the vCPU enter it if it is taken, which is what this returns.
    fn takes(&mut self, state: &VcpuState, what: &dyn core::fmt::Display) -> Result<bool, Why> {
        let set = |child: &Child| patiently(|| child.vcpu(0).set_state(state));
        let mut result = set(self.child()?);
        if result == Err(Status::WRONG_STATE) && self.has_ended(&"the state before")? {
            // It was at rest already, and its domain's end came a moment after.
            result = set(self.child()?);
        }
        match result {
            Ok(()) => {}
            Err(Status::BAD_ARGUMENT) => return Ok(false),
            Err(other) => return Err(format_args!("{what}: {other:?}").into()),
        }
        let child = self.child()?;
        let vcpu = child.vcpu(0);
        if is_fatal_to_tcg(state) {
            return Ok(true);
        }
        let before = vcpu.info().must("vCPU info")?;
        child.domain.resume().must("resume")?;
        until("a state's entry", || {
            let now = vcpu.info().must("vCPU info")?;
            Ok(now.run_ns > before.run_ns || child.is(DomainState::ENDED)?)
        })?;
        match child.domain.pause() {
            Ok(()) | Err(Status::WRONG_STATE) => {}
            Err(other) => return Err(format_args!("pause: {other:?}").into()),
        }
        // It may be on its way out still, and end by that.
        child.state(0)?;
        self.has_ended(what)?;
        Ok(true)
    }

    /// Whether the child has ended, which must have done no harm: then the next state is another's.
    fn has_ended(&mut self, what: &dyn core::fmt::Display) -> Result<bool, Why> {
        let info = self.child()?.domain.info().must("info")?;
        if info.state != DomainState::ENDED {
            return Ok(false);
        }
        let harmless = matches!(
            info.reason,
            Reason::TRIPLE_FAULT
                | Reason::NESTED_FAULT
                | Reason::HALTED
                | Reason::TASK_SWITCH
                | Reason::UNDECODABLE
                | Reason::STATUS
        );
        check!(
            harmless,
            "{what}: taken, then {} {:x?}",
            info.reason.text(),
            info.info
        );
        self.child = None;
        Ok(true)
    }

    /// As [`Subject::takes`], where it is known.
    fn must(&mut self, good: bool, state: &VcpuState, what: &dyn core::fmt::Display) -> Outcome {
        let taken = self.takes(state, what)?;
        check!(
            taken == good,
            "{what} was {}",
            if taken { "taken" } else { "refused" }
        );
        Ok(())
    }
}

/// Whether TCG would be lost with a guest in this state: at the exit of one with EFER.LME set, and neither CR0.PG nor CR4.PAE, it leaves
/// the host without paging.
fn is_fatal_to_tcg(state: &VcpuState) -> bool {
    state.efer & 1 << 8 != 0 && state.cr0 >> 31 & 1 == 0 && state.cr4 & 1 << 5 == 0 && is_tcg()
}

/// A number in a message.
struct At(&'static str, u64);

impl core::fmt::Display for At {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} {:#x}", self.0, self.1)
    }
}

/// A register by its name.
type Named<T> = (&'static str, fn(&mut VcpuState) -> &mut T);

/// Turns each bit of a register of the long-mode state over; `good` says of each whether the state is one, `None` where manuals leave it
/// to the CPU: then it must be enterable if it is taken.
fn each_bit(
    name: &'static str,
    register: fn(&mut VcpuState) -> &mut u64,
    good: impl Fn(u32) -> Option<bool>,
) -> Outcome {
    let mut subject = Subject::new();
    for bit in 0..64 {
        let mut state = subject.long()?;
        *register(&mut state) ^= 1 << bit;
        let what = At(name, bit.into());
        match good(bit) {
            Some(good) => subject.must(good, &state, &what)?,
            None => subject.takes(&state, &what).map(drop)?,
        }
    }
    Ok(())
}

fn each_bit_of_cr0() -> Outcome {
    each_bit(
        "CR0 bit",
        |state| &mut state.cr0,
        |bit| match bit {
            // MP, EM, TS, WP, AM, CD.
            1..=3 | 16 | 18 | 30 => Some(true),
            // PE and PG in long mode, NW without CD, the reserved half.
            0 | 29 | 31 | 32.. => Some(false),
            // NE, which VMX wants set; the reserved ones.
            _ => None,
        },
    )
}

fn each_bit_of_cr3() -> Outcome {
    let width = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    each_bit(
        "CR3 bit",
        |state| &mut state.cr3,
        |bit| (bit >= width).then_some(false),
    )
}

fn each_bit_of_cr4() -> Outcome {
    each_bit(
        "CR4 bit",
        |state| &mut state.cr4,
        |bit| match bit {
            // TSD, DE, PSE, PGE, OSFXSR, OSXMMEXCPT.
            2..=4 | 7 | 9 | 10 => Some(true),
            // PAE in long mode, VMXE, SMXE, the reserved ones.
            5 | 13 | 14 | 15 | 19 | 25.. => Some(false),
            // CET, whose MSRs no vCPU has.
            23 => Some(false),
            _ => None,
        },
    )
}

/// The bits that a guest could set itself are those that can be set for it: no other.
fn cr4_as_from_within() -> Outcome {
    let mut subject = Subject::new();
    for bit in (0..32).filter(|bit| *bit != 5) {
        let mut state = subject.long()?;
        state.cr4 |= 1 << bit;
        let taken = subject.takes(&state, &At("CR4 bit", bit))?;
        // LA57 does not change while paging is on.
        if bit == 12 {
            check!(!taken, "LA57 is taken");
            continue;
        }
        let attacker = crate::attacker::Attacker::new(&crate::attacker::Plan::new(|| {
            let bit = crate::attacker::ordered(0);
            crate::attacker::tell(0, cpu::set_cr4(cpu::cr4()? | 1 << bit).is_ok().into());
            Ok(())
        }))?;
        attacker.order(0, bit)?;
        attacker.start()?;
        attacker.succeeds()?;
        let within = attacker.told(0)? != 0;
        check!(
            taken == within,
            "CR4 bit {bit}: from outside {taken}, from within {within}"
        );
    }
    Ok(())
}

fn each_bit_of_efer() -> Outcome {
    each_bit(
        "EFER bit",
        |state| &mut state.efer,
        |bit| match bit {
            // SCE, NXE.
            0 | 11 => Some(true),
            // LME and LMA with paging, SVME, the reserved ones.
            1..=10 | 12 | 16.. => Some(false),
            _ => None,
        },
    )
}

fn efer_as_from_within() -> Outcome {
    inside(|| {
        // What can be set is told by CPUID, and refused otherwise: NXE, FFXSR, TCE; the others are refused by all.
        let efer = cpu::rdmsr(0xc000_0080)?;
        for bit in 0..64 {
            if matches!(bit, 0 | 8 | 10 | 11) {
                continue;
            }
            let taken = cpu::wrmsr(0xc000_0080, efer | 1 << bit).is_ok();
            crate::attacker::tell(bit, taken.into());
            cpu::wrmsr(0xc000_0080, efer)?;
            let known = matches!(bit, 13..=15);
            check!(known || !taken, "bit {bit} was taken");
        }
        Ok(())
    })?;
    let mut subject = Subject::new();
    for bit in [13, 14, 15] {
        let mut state = subject.long()?;
        state.efer |= 1 << bit;
        let taken = subject.takes(&state, &At("EFER bit", bit))?;
        let attacker = crate::attacker::Attacker::new(&crate::attacker::Plan::new(|| {
            let bit = crate::attacker::ordered(0);
            let efer = cpu::rdmsr(0xc000_0080)?;
            crate::attacker::tell(0, cpu::wrmsr(0xc000_0080, efer | 1 << bit).is_ok().into());
            Ok(())
        }))?;
        attacker.order(0, bit)?;
        attacker.start()?;
        attacker.succeeds()?;
        let within = attacker.told(0)? != 0;
        check!(
            taken == within,
            "EFER bit {bit}: from outside {taken}, from within {within}"
        );
    }
    Ok(())
}

/// All 32 combinations of PE, PG, PAE, LME and LMA (SDM vol. 3 27.3.1.1): paging needs protection, LMA is LME with paging, and long mode
/// needs PAE.
fn each_mode_of_long_mode_bits() -> Outcome {
    let mut subject = Subject::new();
    for combination in 0..32u64 {
        let has = |bit: u32| combination >> bit & 1;
        let (pe, pg, pae, lme, lma) = (has(0), has(1), has(2), has(3), has(4));
        let mut state = subject.long()?;
        state.cr0 = state.cr0 & !(1 << 31 | 1) | pg << 31 | pe;
        state.cr4 = state.cr4 & !(1 << 5) | pae << 5;
        state.efer = state.efer & !(1 << 8 | 1 << 10) | lme << 8 | lma << 10;
        if lma == 0 {
            // No 64-bit code.
            state.cs.attributes = Segment::CODE32;
            // Four empty entries, in case it is PAE paging.
            state.cr3 = DATA + 0x800;
        }
        let good = (pg == 0 || pe == 1) && lma == (lme & pg) && (lma == 0 || pae == 1);
        subject.must(good, &state, &At("PE PG PAE LME LMA", combination))?;
    }
    Ok(())
}

/// SDM vol. 1 13.3: x87 always, AVX with SSE, the three of AVX-512 together and with AVX; and nothing that CPUID does not show.
fn each_xcr0() -> Outcome {
    let leaf = cpu::cpuid(0xd, 0);
    let supported = if cpu::cpuid(1, 0).ecx & 1 << 26 == 0 {
        1
    } else {
        u64::from(leaf.edx) << 32 | u64::from(leaf.eax)
    };
    let mut subject = Subject::new();
    let pairs = |value: u64, bits: u64| value & bits == 0 || value & bits == bits;
    for value in (0..0x400u64).chain((10..64).map(|bit| 1 << bit | 3)) {
        let mut state = subject.long()?;
        state.xcr0 = value;
        let consistent = value & 1 == 1
            && (value & 4 == 0 || value & 2 != 0)
            && pairs(value, 0x18)
            && pairs(value, 0xe0)
            && (value & 0xe0 == 0 || value & 4 != 0)
            && pairs(value, 0x6_0000);
        let good = consistent && value & !supported == 0;
        if good {
            subject.must(true, &state, &At("XCR0", value))?;
        } else {
            let vcpu = subject.child()?.vcpu(0);
            let refused = patiently(|| vcpu.set_state(&state)) == Err(Status::BAD_ARGUMENT);
            check!(refused, "XCR0 {value:#x} was taken");
        }
    }
    Ok(())
}

fn each_bit_of_dr6_and_dr7() -> Outcome {
    let upper = |bit| Some(bit < 32);
    each_bit("DR6 bit", |state| &mut state.dr6, upper)?;
    // GD and the breakpoints only mean something to the guest.
    each_bit("DR7 bit", |state| &mut state.dr7, upper)
}

fn each_bit_of_rflags() -> Outcome {
    each_bit(
        "RFLAGS bit",
        |state| &mut state.rflags,
        |bit| match bit {
            // CF, PF, AF, ZF, SF, DF, OF, AC, ID.
            0 | 2 | 4 | 6 | 7 | 10 | 11 | 18 | 21 => Some(true),
            // The bit that is always set, VM in long mode, the reserved ones.
            1 | 3 | 5 | 15 | 17 | 22.. => Some(false),
            // TF, IF, IOPL, NT, RF, VIF, VIP.
            _ => None,
        },
    )
}

fn rip_not_canonical() -> Outcome {
    let mut subject = Subject::new();
    for rip in [
        1 << 47,
        0x7fff_ffff_ffff + 2,
        u64::MAX >> 1,
        1 << 63,
        0xffff_7fff_ffff_ffff,
    ] {
        let mut state = subject.long()?;
        state.rip = rip;
        subject.must(false, &state, &At("RIP", rip))?;
    }
    Ok(())
}

/// Code of 32 bits has no RIP above them.
fn rip_above_32_bits() -> Outcome {
    let mut subject = Subject::new();
    for rip in [1 << 32, ENTRY | 1 << 32, u64::MAX, 1 << 47] {
        let mut state = subject.long()?;
        state.cs.attributes = Segment::CODE32;
        state.rip = rip;
        subject.must(false, &state, &At("RIP", rip))?;
    }
    Ok(())
}

fn bases_not_canonical() -> Outcome {
    let registers: [Named<Segment>; 6] = [
        ("FS base", |state| &mut state.fs),
        ("GS base", |state| &mut state.gs),
        ("GDTR base", |state| &mut state.gdtr),
        ("IDTR base", |state| &mut state.idtr),
        ("TR base", |state| &mut state.tr),
        ("LDTR base", |state| &mut state.ldtr),
    ];
    let mut subject = Subject::new();
    for (name, register) in registers {
        for base in [1 << 47, 1 << 63, 0xffff_7fff_ffff_ffff] {
            let mut state = subject.long()?;
            register(&mut state).base = base;
            subject.must(false, &state, &At(name, base))?;
        }
        for base in [0xffff_8000_0000_0000, 0x7fff_ffff_f000] {
            let mut state = subject.long()?;
            register(&mut state).base = base;
            subject.must(true, &state, &At(name, base))?;
        }
    }
    Ok(())
}

/// They have 16 bits (SDM vol. 3 27.3.1.3).
fn limits_of_tables() -> Outcome {
    let mut subject = Subject::new();
    for limit in [0, 7, 0xffff, 0x1_0000, u32::MAX] {
        for which in 0..2 {
            let mut state = subject.long()?;
            if which == 0 {
                state.gdtr.limit = limit;
            } else {
                state.idtr.limit = limit;
            }
            subject.must(limit <= 0xffff, &state, &At("limit", limit.into()))?;
        }
    }
    Ok(())
}

fn addresses_in_msrs_not_canonical() -> Outcome {
    let registers: [Named<u64>; 3] = [
        ("LSTAR", |state| &mut state.lstar),
        ("CSTAR", |state| &mut state.cstar),
        ("KERNEL_GS_BASE", |state| &mut state.kernel_gs_base),
    ];
    let mut subject = Subject::new();
    for (name, register) in registers {
        for value in [
            1 << 47,
            1 << 63,
            0xffff_7fff_ffff_ffff,
            u64::MAX,
            0x7fff_ffff_ffff,
        ] {
            let mut state = subject.long()?;
            *register(&mut state) = value;
            let good = value >> 47 == 0 || value >> 47 == 0x1_ffff;
            subject.must(good, &state, &At(name, value))?;
        }
    }
    Ok(())
}

fn each_memory_type_of_the_pat() -> Outcome {
    let mut subject = Subject::new();
    for kind in (0..=16).chain([0x20, 0x40, 0x80, 0xff]) {
        let place = 8 * (kind & 7);
        let mut state = subject.long()?;
        state.pat = state.pat & !(0xff << place) | kind << place;
        let good = matches!(kind, 0 | 1 | 4..=7);
        subject.must(good, &state, &At("PAT type", kind))?;
    }
    Ok(())
}

/// Gives a segment register attributes of every kind; those that are taken must be enterable. Returns how many of them were.
fn each_attribute(
    name: &'static str,
    register: fn(&mut VcpuState) -> &mut Segment,
    attributes: impl Iterator<Item = u16>,
) -> Result<usize, Why> {
    let mut subject = Subject::new();
    let mut taken = 0;
    for attributes in attributes {
        let mut state = subject.long()?;
        register(&mut state).attributes = attributes;
        taken += usize::from(subject.takes(&state, &At(name, attributes.into()))?);
    }
    Ok(taken)
}

/// All types with S, DPL and P, in 64-bit, 32-bit and 16-bit forms and the impossible one with both.
fn attributes() -> impl Iterator<Item = u16> {
    (0..4u16).flat_map(|size| (0..0x100).map(move |low| size << 9 | low))
}

fn each_attribute_of_cs() -> Outcome {
    let taken = each_attribute("CS attributes", |state| &mut state.cs, attributes())?;
    check!(taken > 0, "none was taken");
    let mut subject = Subject::new();
    // A system segment, absent, L and D at once.
    for attributes in [0xa8b, 0xa1b, 0xe9b] {
        let mut state = subject.long()?;
        state.cs.attributes = attributes;
        subject.must(false, &state, &At("CS attributes", attributes.into()))?;
    }
    Ok(())
}

fn each_attribute_of_ss() -> Outcome {
    let taken = each_attribute("SS attributes", |state| &mut state.ss, 0..0x100)?;
    check!(taken > 0, "none was taken");
    Ok(())
}

fn each_attribute_of_data_segments() -> Outcome {
    // A segment that is not present is always a good one.
    let attributes = || (0..0x100).filter(|attributes| attributes & 0x80 != 0);
    each_attribute("DS attributes", |state| &mut state.ds, attributes())?;
    each_attribute("FS attributes", |state| &mut state.fs, attributes())?;
    Ok(())
}

/// Long mode's task register holds a busy 64-bit TSS, and nothing else (SDM vol. 3 27.3.1.2).
fn each_attribute_of_tr() -> Outcome {
    let mut subject = Subject::new();
    for attributes in 0..0x100 {
        let mut state = subject.long()?;
        state.tr.attributes = attributes;
        let taken = subject.takes(&state, &At("TR attributes", attributes.into()))?;
        if attributes & 0x9f == Segment::TSS_BUSY {
            check!(taken, "a busy TSS, {attributes:#x}, was refused");
        }
    }
    Ok(())
}

fn each_attribute_of_ldtr() -> Outcome {
    let mut subject = Subject::new();
    for attributes in 0..0x100 {
        let mut state = subject.long()?;
        state.ldtr.attributes = attributes;
        let taken = subject.takes(&state, &At("LDTR attributes", attributes.into()))?;
        if attributes & 0x9f == Segment::LDT {
            check!(taken, "an LDT, {attributes:#x}, was refused");
        }
    }
    Ok(())
}

/// In virtual-8086 mode a segment's base is 16 times its selector, its limit is 0xFFFF, its attributes 0xF3 (SDM vol. 3 27.3.1.2).
fn virtual_8086_segments() -> Outcome {
    let segment = |selector: u16| Segment {
        selector,
        attributes: 0xf3,
        limit: 0xffff,
        base: u64::from(selector) << 4,
    };
    let mut subject = Subject::new();
    let mut good = VcpuState::protected_mode(0x10);
    good.rflags |= 1 << 17;
    for place in [
        &mut good.cs,
        &mut good.ss,
        &mut good.ds,
        &mut good.es,
        &mut good.fs,
        &mut good.gs,
    ] {
        *place = segment(0x100);
    }
    subject.must(true, &good, &"a good state")?;
    let changes: [fn(&mut Segment); 5] = [
        |segment| segment.base += 16,
        |segment| segment.limit = u32::MAX,
        |segment| segment.attributes = 0x9b,
        |segment| segment.attributes = 0,
        |segment| segment.selector ^= 1,
    ];
    for (index, change) in (0..).zip(changes) {
        let mut state = good;
        change(&mut state.ds);
        // SVM looks at none of it (APM2 15.5.1): it can be refused or entered.
        let taken = subject.takes(&state, &At("a change", index))?;
        check!(cpu::is_amd() || !taken, "change {index} was taken");
    }
    Ok(())
}

/// PAE paging loads four entries from CR3: where there is no memory, or they have reserved bits, there is no such state.
fn pae_tables_behind_the_end() -> Outcome {
    let mut subject = Subject::new();
    let mut state = VcpuState::protected_mode(ENTRY as u32);
    state.cr4 |= 1 << 5;
    state.cr0 |= 1 << 31;
    for cr3 in [0x10_0000, 0xffff_f000, 0xfee0_0000] {
        state.cr3 = cr3;
        subject.must(false, &state, &At("CR3", cr3))?;
    }
    state.cr3 = DATA;
    subject.child()?.set_word(DATA, 1 << 1 | 1)?;
    // AMD's CPUs look at entries when they are used (APM2 15.25.10).
    let taken = subject.takes(&state, &"a reserved bit of an entry")?;
    check!(
        cpu::is_amd() || !taken,
        "a reserved bit of an entry was taken"
    );
    subject.child()?.set_word(DATA, 0)?;
    subject.must(true, &state, &"four empty entries")
}

/// Changes a word of a state at a random place: to a random number of any length, by a bit, or to all ones.
fn changed(state: &VcpuState, random: &mut Random) -> VcpuState {
    const WORDS: usize = size_of::<VcpuState>() / 8;
    let mut words = [0u64; WORDS];
    for (word, bytes) in words.iter_mut().zip(bytes_of(state).chunks_exact(8)) {
        *word = bytes
            .iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    }
    for _ in 0..1 + random.number() % 3 {
        // Not the general registers, in which everything is good.
        let index = 16 + random.number() as usize % (WORDS - 16);
        if let Some(word) = words.get_mut(index) {
            *word = match random.number() % 4 {
                0 => random.number() >> (random.number() & 63),
                1 | 2 => *word ^ 1 << (random.number() & 63),
                _ => u64::MAX,
            };
        }
    }
    state_of(&words)
}

/// The state that these words are.
fn state_of(words: &[u64]) -> VcpuState {
    let mut state = VcpuState::RESET;
    let bytes = words.iter().flat_map(|word| word.to_le_bytes());
    for (index, byte) in bytes.enumerate() {
        STATE.set(index, byte);
    }
    // SAFETY: the scratch memory holds as many bytes as a state has, which is plain old data.
    unsafe {
        core::ptr::copy_nonoverlapping(STATE.address() as *const VcpuState, &raw mut state, 1);
    }
    state
}

/// A state as bytes.
static STATE: Scratch<1024> = Scratch::new();

/// How many random changes are tried of each base.
const CHANGES: u64 = 120;

fn random_changes(base: fn(&mut Subject) -> Result<VcpuState, Why>, seed: u64) -> Outcome {
    let mut subject = Subject::new();
    let mut random = Random::new(seed);
    let mut taken = 0;
    for round in 0..CHANGES {
        let base = base(&mut subject)?;
        let state = changed(&base, &mut random);
        taken += u64::from(subject.takes(&state, &At("change", round))?);
    }
    check!(taken > 0 && taken < CHANGES, "{taken} were taken");
    Ok(())
}

fn random_changes_of_long_mode() -> Outcome {
    random_changes(Subject::long, 0x1234_5678_9abc_def1)
}

fn random_changes_of_protected_mode() -> Outcome {
    random_changes(
        |_| Ok(VcpuState::protected_mode(ENTRY as u32)),
        0x2345_6789_abcd_ef12,
    )
}

fn random_changes_of_real_mode() -> Outcome {
    random_changes(|_| Ok(real_mode(ENTRY)), 0x3456_789a_bcde_f123)
}

/// No state at all: refused, each, and what there was is left.
fn random_bytes() -> Outcome {
    let mut subject = Subject::new();
    let mut random = Random::new(0x4567_89ab_cdef_1234);
    let child = subject.child()?;
    let before = child.state(0)?;
    for round in 0..200 {
        let words: [u64; size_of::<VcpuState>() / 8] = core::array::from_fn(|_| random.number());
        let result = patiently(|| child.vcpu(0).set_state(&state_of(&words)));
        check!(
            result == Err(Status::BAD_ARGUMENT),
            "round {round}: {result:?}"
        );
    }
    check!(child.state(0)? == before, "the state has changed");
    Ok(())
}

/// Room for every vector state.
const AREA_SIZE: u64 = 16 << 10;
static AREA: Scratch<{ AREA_SIZE as usize }> = Scratch::new();

/// Offsets in the area (SDM vol. 1 tables 10-2 and 13-1).
const MXCSR: usize = 24;
const HEADER: usize = 512;

/// A child with its vector state in [`AREA`], and its length.
fn with_vector_state() -> Result<(Child, u64), Why> {
    let child = Child::new(&Plan::new(count()))?;
    let arguments = [
        raw(child.vcpu(0).any()),
        part::VECTOR,
        AREA.address(),
        AREA_SIZE,
    ];
    match to_the_end(Call::VCPU_GET_STATE, arguments) {
        (Status::OK, length) => Ok((child, length)),
        (status, _) => Err(format_args!("get vector state: {status:?}").into()),
    }
}

fn set_vector(child: &Child, length: u64) -> Status {
    let arguments = [
        raw(child.vcpu(0).any()),
        part::VECTOR,
        AREA.address(),
        length,
    ];
    to_the_end(Call::VCPU_SET_STATE, arguments).0
}

/// Runs the child on, whose vector state was set; XRSTOR of it must have done no harm.
fn lives(child: &Child) -> Outcome {
    child.start()?;
    child.until_change(DATA)
}

/// Every bit of the header: components that are not there, the compacted format, the reserved words (SDM vol. 1 13.4.2).
fn header_of_the_vector_state() -> Outcome {
    let (child, length) = with_vector_state()?;
    if length == 512 {
        // Without XSAVE there is none.
        check_eq!(cpu::cpuid(1, 0).ecx & 1 << 26, 0, "XSAVE");
        return Ok(());
    }
    let leaf = cpu::cpuid(0xd, 0);
    let supported = u64::from(leaf.edx) << 32 | u64::from(leaf.eax);
    for word in 0..8 {
        let at = HEADER + word * 8;
        let before = AREA.get_u64(at);
        for bit in 0..64 {
            AREA.set_u64(at, before ^ 1 << bit);
            let good = word == 0 && supported >> bit & 1 != 0;
            let status = set_vector(&child, length);
            let expected = if good {
                Status::OK
            } else {
                Status::BAD_ARGUMENT
            };
            check!(
                status == expected,
                "word {word}, bit {bit}: {status:?}, expected {expected:?}"
            );
        }
        AREA.set_u64(at, before);
    }
    check!(set_vector(&child, length) == Status::OK, "the good one");
    lives(&child)
}

/// LDMXCSR of a reserved bit is #GP (SDM vol. 1 10.2.3): the host's XRSTOR must not meet one.
fn mxcsr_of_the_vector_state() -> Outcome {
    let (child, length) = with_vector_state()?;
    if length > 512 {
        AREA.set_u64(HEADER, AREA.get_u64(HEADER) | 3);
    }
    let before = AREA.get_u64(MXCSR);
    for bit in 16..32 {
        AREA.set_u64(MXCSR, before | 1 << bit);
        let status = set_vector(&child, length);
        // MM, misaligned SSE, is there on some of AMD's.
        let may = bit == 17 && cpu::is_amd();
        check!(
            status == Status::BAD_ARGUMENT || may && status == Status::OK,
            "bit {bit}: {status:?}"
        );
    }
    for value in 0..0x100 {
        AREA.set_u64(MXCSR, before & !0xffff | value << 8);
        let status = set_vector(&child, length);
        check!(status == Status::OK, "MXCSR {:#x}: {status:?}", value << 8);
    }
    lives(&child)
}

/// Random bytes in all of it but what has rules.
fn random_vector_state() -> Outcome {
    let mut random = Random::new(0x5678_9abc_def1_2345);
    let (child, length) = with_vector_state()?;
    let mxcsr = AREA.get_u64(MXCSR);
    for at in (0..length as usize).step_by(8) {
        if !(HEADER..HEADER + 64).contains(&at) {
            AREA.set_u64(at, random.number());
        }
    }
    AREA.set_u64(MXCSR, mxcsr);
    if length > 512 {
        let leaf = cpu::cpuid(0xd, 0);
        AREA.set_u64(HEADER, u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
    }
    let status = set_vector(&child, length);
    check!(status == Status::OK, "random vector state: {status:?}");
    lives(&child)
}
