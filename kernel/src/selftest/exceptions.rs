//! Exceptions: those from which the kernel goes on, and the gates of all.

#![allow(
    unsafe_code,
    reason = "raises exceptions, and reads the descriptor tables"
)]

use core::arch::asm;
use core::sync::atomic::{AtomicU64, Ordering};

use super::{check, mailbox, tests};
use crate::arch::cpu::Counters;
use crate::arch::gdt::IST_STACKS;
use crate::arch::msr::{self, Msr};
use crate::arch::{apic, cpu};

tests!("exceptions":
    missing_msr_reads_as_none,
    present_msr_reads_as_itself,
    refused_msr_write_is_told,
    accepted_msr_write_takes_effect,
    breakpoint_returns,
    software_interrupts_reach_their_vectors,
    gates_lead_to_their_stubs,
    interrupt_stacks_are_distinct,
);

/// The x2APIC's EOI register, which cannot be read (SDM vol. 3 12.12.1.2).
const X2APIC_EOI: Msr = Msr(0x80b);
/// Protection keys of supervisor pages: a register of 32 bits, where it is there at all.
const IA32_PKRS: Msr = Msr(0x6e1);

fn missing_msr_reads_as_none() -> super::Outcome {
    // Without x2APIC there is nothing that would do: TCG and Bochs let numbers be read that mean nothing.
    if apic::mode() != "x2APIC" {
        return Ok(());
    }
    for (cpu, value) in mailbox::on_each(|| msr::try_read(X2APIC_EOI))? {
        check!(value.is_none(), "it is {value:x?} on cpu{}", cpu.id);
    }
    Ok(())
}

fn present_msr_reads_as_itself() -> super::Outcome {
    let read = || (msr::try_read(Msr::IA32_PAT), msr::read(Msr::IA32_PAT));
    for (cpu, (tried, value)) in mailbox::on_each(read)? {
        check!(
            tried == Some(value),
            "{tried:x?}, not {value:#x} on cpu{}",
            cpu.id
        );
    }
    Ok(())
}

fn refused_msr_write_is_told() -> super::Outcome {
    let attempt = || {
        // SAFETY: a base must be canonical, and the upper half of PKRS is reserved; the kernel uses neither register.
        unsafe {
            (
                msr::try_write(Msr::IA32_KERNEL_GS_BASE, 1 << 63),
                msr::try_write(IA32_PKRS, 1 << 40),
            )
        }
    };
    for (cpu, accepted) in mailbox::on_each(attempt)? {
        // Bochs accepts what is written to registers it lacks, and TCG bases that are not canonical.
        check!(
            accepted != (true, true),
            "both were accepted on cpu{}",
            cpu.id
        );
    }
    Ok(())
}

fn accepted_msr_write_takes_effect() -> super::Outcome {
    let value = 0xffff_8000_1234_5678;
    let old = msr::read(Msr::IA32_KERNEL_GS_BASE);
    // SAFETY: the kernel has no use for this register, and gets its value back.
    let (done, seen) = unsafe {
        let done = msr::try_write(Msr::IA32_KERNEL_GS_BASE, value);
        let seen = msr::read(Msr::IA32_KERNEL_GS_BASE);
        msr::write(Msr::IA32_KERNEL_GS_BASE, old);
        (done, seen)
    };
    check!(done && seen == value, "done: {done}, seen {seen:#x}");
    Ok(())
}

fn breakpoint_returns() -> super::Outcome {
    for (cpu, gone) in mailbox::on_each(|| counted(|counters| &counters.breakpoint, int::<3>))? {
        check!(
            gone == 1,
            "{gone} breakpoints were counted on cpu{}",
            cpu.id
        );
    }
    Ok(())
}

fn int<const VECTOR: u8>() {
    // SAFETY: used with vectors whose handlers count and return.
    unsafe { asm!("int {}", const VECTOR) };
}

fn counted(counter: fn(&Counters) -> &AtomicU64, work: fn()) -> u64 {
    let counter = counter(&cpu::cpu().counters);
    let before = counter.load(Ordering::Relaxed);
    work();
    counter.load(Ordering::Relaxed) - before
}

fn software_interrupts_reach_their_vectors() -> super::Outcome {
    type Case = (&'static str, fn(&Counters) -> &AtomicU64, fn());
    let cases: [Case; 8] = [
        ("2", |counters| &counters.nmi, int::<2>),
        ("3", |counters| &counters.breakpoint, int::<3>),
        ("20h", |counters| &counters.unexpected, int::<0x20>),
        ("80h", |counters| &counters.unexpected, int::<0x80>),
        ("efh", |counters| &counters.unexpected, int::<0xef>),
        ("timer", |counters| &counters.timer, int::<{ apic::TIMER }>),
        ("kick", |counters| &counters.kick, int::<{ apic::KICK }>),
        (
            "spurious",
            |counters| &counters.spurious,
            int::<{ apic::SPURIOUS }>,
        ),
    ];
    for (name, counter, raise) in cases {
        let gone = counted(counter, raise);
        check!(gone == 1, "vector {name} was counted {gone} times");
    }
    Ok(())
}

/// Vectors at which the CPU pushes an error code (SDM vol. 3 table 7-1; APM2 8.2).
const WITH_ERROR_CODE: [u8; 10] = [8, 10, 11, 12, 13, 14, 17, 21, 29, 30];
/// Vectors that have a stack of their own.
const WITH_STACK: [u8; IST_STACKS] = [2, 8, 18];

/// Limit and base, as SGDT and SIDT store them.
#[repr(C, packed)]
struct TablePointer {
    limit: u16,
    base: u64,
}

fn gates_lead_to_their_stubs() -> super::Outcome {
    let mut pointer = TablePointer { limit: 0, base: 0 };
    // SAFETY: stores ten bytes.
    unsafe { asm!("sidt [{}]", in(reg) &raw mut pointer, options(nostack, preserves_flags)) };
    let (limit, base) = (pointer.limit, pointer.base);
    check!(limit == 256 * 16 - 1, "the table's limit is {limit:#x}");
    let gate = |vector: u8| {
        let at = (base + u64::from(vector) * 16) as *const u64;
        // SAFETY: the gate lies within the table's limit.
        unsafe { (at.read(), at.add(1).read()) }
    };
    let handler = |(low, high): (u64, u64)| low & 0xffff | low >> 32 & 0xffff_0000 | high << 32;
    let first = handler(gate(0));
    let mut entry = None;
    for vector in 0..=255 {
        let found = gate(vector);
        let at = handler(found);
        check!(
            at == first + u64::from(vector) * 16,
            "gate {vector} leads to {at:#x}"
        );
        let attributes = found.0 >> 40 & 0xff;
        check!(
            attributes == 0x8e,
            "gate {vector} has attributes {attributes:#x}"
        );
        let stack = found.0 >> 32 & 7;
        check!(
            (stack != 0) == WITH_STACK.contains(&vector),
            "gate {vector} uses interrupt stack {stack}"
        );
        // SAFETY: a stub is 16 bytes of code.
        let code: [u8; 16] = unsafe { (at as *const [u8; 16]).read() };
        let pushes = WITH_ERROR_CODE.contains(&vector);
        let call = if pushes { 0 } else { 2 };
        let expected: &[u8] = if pushes { &[0xe8] } else { &[0x6a, 0, 0xe8] };
        check!(
            code.starts_with(expected),
            "stub {vector} begins with {:x?}",
            &code[..3]
        );
        let displacement = i32::from_le_bytes(core::array::from_fn(|i| code[call + 1 + i]));
        let target = (at + call as u64 + 5).wrapping_add_signed(i64::from(displacement));
        check!(
            *entry.get_or_insert(target) == target,
            "stub {vector} calls {target:#x}"
        );
    }
    let mut stacks = WITH_STACK.map(|vector| gate(vector).0 >> 32 & 7);
    stacks.sort_unstable();
    check!(stacks == [1, 2, 3], "the stacks are {stacks:?}");
    Ok(())
}

/// The tops of the calling CPU's interrupt stacks, read from the TSS that its task register names.
pub(super) fn interrupt_stacks() -> [u64; IST_STACKS] {
    let mut pointer = TablePointer { limit: 0, base: 0 };
    let selector: u64;
    // SAFETY: stores ten bytes, and a selector.
    unsafe {
        asm!("sgdt [{}]", "str {:r}", in(reg) &raw mut pointer, out(reg) selector, options(nostack, preserves_flags))
    };
    let descriptor = (pointer.base + (selector & !7)) as *const u64;
    // SAFETY: the task register was loaded from this descriptor, and the TSS has seven interrupt stacks from offset 36 on
    // (SDM vol. 3 figure 9-11).
    unsafe {
        let (low, high) = (descriptor.read(), descriptor.add(1).read());
        let base = low >> 16 & 0xff_ffff | low >> 32 & 0xff00_0000 | high << 32;
        core::array::from_fn(|index| {
            ((base + 36 + index as u64 * 8) as *const u64).read_unaligned()
        })
    }
}

fn interrupt_stacks_are_distinct() -> super::Outcome {
    let mut all = alloc::vec::Vec::new();
    for (cpu, stacks) in mailbox::on_each(interrupt_stacks)? {
        for top in stacks {
            check!(
                top != 0 && top.is_multiple_of(16),
                "cpu{} has one at {top:#x}",
                cpu.id
            );
            check!(
                crate::arch::stacks::holds(top - 4096, 4096),
                "cpu{} has one that ends at {top:#x}, which is no stack",
                cpu.id
            );
            all.push(top);
        }
    }
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    check!(
        all.len() == count,
        "{} of {count} are the same",
        count - all.len()
    );
    Ok(())
}
