//! Executes each privileged or intercepted instruction and checks what the manuals promise.
//!
//! Where Intel's and AMD's manuals differ, the test says so and follows the CPU's vendor. References are to the Intel SDM
//! and to AMD's APM volume 2 ("APM2").

#![no_std]
#![no_main]
#![allow(
    clippy::result_large_err,
    reason = "without a heap a trap and a failure travel by value"
)]
#![allow(
    unsafe_code,
    reason = "snippet! assembles code; what is run, the runtime runs"
)]

mod calls;
mod control;
mod cpuid;
mod debug;
mod exceptions;
mod hidden;
mod io;
mod length;
mod memory;
mod msr;
mod tables;

use plinth_rt::quirks::{is_tcg, left_out_for_tcg};
use plinth_rt::{Gprs, Scratch, Trap, cpu, suite};

plinth_rt::entry!(main);

/// Memory that tests give to instructions.
static PAGES: Scratch<{ 4 * 4096 }> = Scratch::new();

const CR4_OSXSAVE: u64 = 1 << 18;

/// Different values in all registers.
fn pattern() -> Gprs {
    Gprs {
        rax: 0x0101_0101_0101_0101,
        rbx: 0x0202_0202_0202_0202,
        rcx: 0x0303_0303_0303_0303,
        rdx: 0x0404_0404_0404_0404,
        rsi: 0x0505_0505_0505_0505,
        rdi: 0x0606_0606_0606_0606,
        rbp: 0x0707_0707_0707_0707,
        r8: 0x0808_0808_0808_0808,
        r9: 0x0909_0909_0909_0909,
        r10: 0x1010_1010_1010_1010,
        r11: 0x1111_1111_1111_1111,
        r12: 0x1212_1212_1212_1212,
        r13: 0x1313_1313_1313_1313,
        r14: 0x1414_1414_1414_1414,
        r15: 0x1515_1515_1515_1515,
    }
}

/// RDI holds the address of [`PAGES`], the rest is zero.
fn addresses() -> Gprs {
    Gprs {
        rdi: PAGES.address(),
        ..Gprs::ZERO
    }
}

/// Error code of an exception about a gate of the interrupt table (SDM vol. 3 7.13).
fn gate_error(vector: u8) -> u64 {
    u64::from(vector) << if is_tcg() { 4 } else { 3 } | 2
}

fn has_xsave() -> bool {
    cpu::cpuid(1, 0).ecx & 1 << 26 != 0
}

/// Switches AVX on; returns XCR0 as it was.
fn enable_avx() -> Result<u64, Trap> {
    cpu::set_cr4(cpu::cr4()? | CR4_OSXSAVE)?;
    let before = cpu::xgetbv()?;
    cpu::xsetbv(0, 7)?;
    Ok(before)
}

fn main() -> u64 {
    suite!(
        "privileged",
        [
            cpuid::hypervisor_bit,
            cpuid::signature,
            cpuid::frequency,
            cpuid::no_virtualisation,
            cpuid::no_monitor,
            cpuid::clears_upper_halves,
            cpuid::keeps_other_registers,
            cpuid::beyond_highest,
            cpuid::extended_leaves,
            cpuid::one_cpu,
            cpuid::osxsave_mirrors_cr4,
            cpuid::xsave_sizes,
            cpuid::xcr0_outlives_osxsave,
            cpuid::works_at_cpl3,
            msr::unknown_read,
            msr::unknown_write,
            msr::refused_at_cpl3,
            msr::upper_halves,
            msr::efer_start,
            msr::efer_lme_under_paging,
            msr::efer_reserved_bits,
            msr::efer_hides_svme,
            msr::efer_sce_and_nxe_toggle,
            msr::pat_own,
            msr::pat_illegal_types,
            msr::bases_keep_values,
            msr::exits_keep_switched_registers,
            msr::bases_non_canonical,
            msr::fs_base_is_used,
            msr::swapgs,
            msr::syscall_registers_keep_values,
            msr::lstar_non_canonical,
            msr::syscall_and_sysret,
            msr::syscall_needs_sce,
            msr::sysenter_registers_keep_values,
            msr::sysenter,
            msr::tsc,
            msr::rdtscp_and_tsc_aux,
            msr::tsc_monotonic,
            msr::spec_ctrl,
            msr::prediction_command,
            msr::arch_capabilities,
            msr::no_flush_command,
            control::cr0_pg_without_pe,
            control::cr0_nw_without_cd,
            control::cr0_pg_clear_in_long_mode,
            control::cr0_upper_half,
            control::cr0_et_stays,
            control::cr0_cd_reads_back,
            control::cr0_wp_enforced,
            control::cr0_ts,
            control::cr0_mp,
            control::cr0_em,
            control::clts_at_cpl3,
            control::lmsw,
            control::smsw,
            control::cr0_every_operand,
            control::mov_cr_ignores_mod,
            control::cr_at_cpl3,
            control::cr3_cache_bits_read_back,
            control::cr4_reserved_bits,
            control::cr4_vmxe_and_smxe,
            control::cr4_pae_clear_in_long_mode,
            control::cr4_toggles,
            control::cr4_follows_cpuid,
            control::cr4_tsd,
            control::cr8,
            control::absent_registers,
            control::xsetbv_rules,
            debug::addresses_keep_values,
            debug::dr6_rules,
            debug::dr7_rules,
            debug::dr4_and_dr5,
            debug::refused_at_cpl3,
            debug::general_detect,
            debug::execution_breakpoint,
            debug::execution_breakpoint_on_cpuid,
            debug::write_breakpoint,
            debug::access_breakpoint,
            debug::step_over_nop,
            debug::step_over_cpuid,
            debug::step_over_rdmsr,
            debug::step_over_in,
            debug::step_over_mov_cr,
            debug::step_over_wbinvd,
            debug::step_over_hlt,
            debug::step_over_hypercall,
            debug::step_over_rep_outs,
            debug::step_in_shadow_of_mov_ss,
            debug::step_over_fault,
            debug::step_at_cpl3_over_cpuid,
            calls::version,
            calls::other_vendors_instruction,
            calls::refused_at_cpl3,
            calls::unknown_number,
            calls::keeps_registers,
            calls::keeps_flags,
            calls::clock_is_monotonic,
            calls::console_write_beyond_memory,
            calls::console_write_wrapping,
            calls::console_write_too_long,
            calls::console_write_nothing,
            calls::from_compatibility_mode,
            calls::keeps_xmm_registers,
            calls::keeps_ymm_registers,
            calls::keeps_x87_state,
            hidden::vmxon,
            hidden::vmxoff,
            hidden::vmclear,
            hidden::vmptrld,
            hidden::vmptrst,
            hidden::vmread,
            hidden::vmwrite,
            hidden::vmlaunch,
            hidden::vmresume,
            hidden::vmfunc,
            hidden::invept,
            hidden::invvpid,
            hidden::vmrun,
            hidden::vmload,
            hidden::vmsave,
            hidden::stgi,
            hidden::clgi,
            hidden::skinit,
            hidden::invlpga,
            hidden::getsec,
            hidden::rsm,
            hidden::encls,
            hidden::enclv,
            hidden::pconfig,
            hidden::monitor,
            hidden::mwait,
            hidden::rdpmc,
            hidden::pause,
            hidden::invd,
            hidden::wbinvd,
            hidden::hlt_at_cpl3,
            hidden::invlpg_at_cpl3,
            hidden::cli_and_sti_at_cpl3,
            io::in_register,
            io::in_immediate,
            io::out_register_and_immediate,
            io::upper_rdx_is_ignored,
            io::beyond_last_port,
            io::ins_each_size,
            io::outs_each_size,
            io::rep_ins,
            io::rep_ins_downwards,
            io::rep_outs_downwards,
            io::rep_of_nothing,
            io::rep_outs_long,
            io::ins_across_pages,
            io::ins_to_read_only_page,
            io::ins_to_absent_page,
            io::outs_from_absent_page,
            io::ins_sets_accessed_and_dirty,
            io::address_size_32,
            io::segment_override,
            io::non_canonical,
            io::refused_at_cpl3,
            io::iopl_3,
            exceptions::divide_error,
            exceptions::undefined,
            exceptions::breakpoint,
            exceptions::software_interrupt,
            exceptions::selector_beyond_table,
            exceptions::segment_not_present,
            exceptions::gate_not_present,
            exceptions::gate_beyond_table,
            exceptions::non_canonical_access,
            exceptions::non_canonical_jump,
            exceptions::alignment_check,
            exceptions::no_alignment_check_without_am,
            exceptions::x87_error,
            exceptions::simd_error,
            exceptions::double_fault,
            exceptions::double_fault_of_two_contributory,
            exceptions::double_fault_of_injected,
            exceptions::serial_exceptions,
            exceptions::handler_returns,
            exceptions::frame_contents,
            exceptions::privileged_at_cpl3,
            memory::absent_page,
            memory::supervisor_page,
            memory::read_only_page,
            memory::no_execute_page,
            memory::no_execute_bit_without_nxe,
            memory::reserved_bit,
            memory::accessed_and_dirty,
            memory::invlpg,
            memory::global_pages,
            memory::cr3_load_forgets,
            memory::stack_page_fault,
            tables::sgdt,
            tables::sidt,
            tables::lgdt_and_lidt_keep_values,
            tables::lgdt_non_canonical,
            tables::task_register,
            tables::local_descriptor_table,
            tables::ltr_marks_busy,
            tables::lar_and_lsl,
            length::cpuid_with_prefixes,
            length::too_long,
            length::msr_with_prefixes,
            length::io_with_prefixes,
            length::control_registers_with_prefixes,
            length::lock_mov_cr0,
            length::across_a_page_boundary,
            length::into_an_absent_page,
            length::before_an_absent_page,
            length::rewritten_code,
            length::through_other_mappings,
            length::in_compatibility_mode,
            control::cr3_reserved_bits,
        ]
    )
}
