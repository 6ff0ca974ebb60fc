//! Intel's VMX with EPT: the vendor [`Vmx`] (SDM vol. 3 chapters 24 to 31).
//!
//! Layers, from the bottom: [`vmcs`] (typed fields), [`control`] (what this CPU can do), [`bitmaps`], `apic` and [`validate`] (pure
//! rules), `ops` and `host` (instructions), `enter` (into the guest and out), `exits` (why it came out), `vcpu` (the
//! state of one), [`dump`] (for the report of a failed entry). Nothing here knows what an exit means for a guest.

#![allow(unsafe_code, reason = "VMX operation is entered and left here")]

mod apic;
pub mod bitmaps;
pub mod control;
pub mod dump;
mod enter;
mod exits;
mod frame;
mod host;
mod ops;
pub mod validate;
mod vcpu;
pub mod vmcs;

use core::sync::atomic::{AtomicU64, Ordering};

use raw_cpuid::CpuId;
use spin::{Mutex, Once};

use super::tag::TagAllocator;
use super::{Capabilities, GuestInstructions, Lack, OutOfMemory, Vendor, clear_bits};
use crate::arch::cpu::cpu;
use crate::arch::msr::{self, Msr};
use crate::arch::speculation;
use crate::mem::Hpa;
use crate::mem::nested::Ept;
use crate::rules::speculation::Plan;
use control::{Controls, Registers};
use frame::Frame;
use host::HostState;
use validate::{Limits, bits};
pub use vcpu::VmxVcpu;
use vmcs::{EptPointer, SecondaryControls, Vpid};

/// VMX with EPT.
#[derive(Debug)]
pub struct Vmx;

/// MSRs that neither entry nor exit switches: loaded when a vCPU is attached, saved when it is detached. The kernel does
/// not use SYSCALL, SWAPGS or RDTSCP, so a guest's values stay until the next vCPU's replace them. TSC_AUX is the last: a
/// CPU may lack it.
pub(crate) const SWITCHED: [Msr; 6] = [
    Msr::IA32_STAR,
    Msr::IA32_LSTAR,
    Msr::IA32_CSTAR,
    Msr::IA32_FMASK,
    Msr::IA32_KERNEL_GS_BASE,
    Msr::IA32_TSC_AUX,
];

/// IA32_FEATURE_CONTROL: locked until reset.
const LOCKED: u64 = 1 << 0;
/// IA32_FEATURE_CONTROL: VMX outside SMX.
const VMX_OUTSIDE_SMX: u64 = 1 << 2;

/// One CPU in VMX operation.
#[derive(Debug)]
pub struct VmxCpu {
    /// The CPU's number.
    id: u32,
    /// The VMXON region, the CPU's own while VMX is on.
    _region: Frame,
    controls: Controls,
    limits: Limits,
    /// CR0 bits that are 1 for every guest, whatever it sees.
    cr0_required: u64,
    /// CR4 bits that are 1 for every guest.
    cr4_required: u64,
    host: HostState,
    tags: TagAllocator,
    /// What the [`SWITCHED`] MSRs hold now.
    loaded: [u64; SWITCHED.len()],
    /// How many of them this CPU has.
    switched: usize,
    /// What the attached vCPU translates through.
    current: Option<(EptPointer, Vpid)>,
    /// What is done around guests' runs on this CPU.
    speculation: Plan,
}

/// The bitmaps that all domains share: of MSRs, and of the lower and the upper half of the ports.
struct Bitmaps {
    /// Without and with a local APIC that the CPU keeps in x2APIC mode.
    msr: [Frame; 2],
    io: [Frame; 2],
}

static SHARED: Once<Bitmaps> = Once::new();

/// A domain's bitmaps.
#[derive(Debug)]
pub struct VmxDomain {
    msr: [Hpa; 2],
    /// The bitmaps of ports that are in force.
    io: [AtomicU64; 2],
    /// Its own bitmaps of ports, once it may use some directly.
    ports: Mutex<Option<[Frame; 2]>>,
}

impl VmxDomain {
    const fn msr_bitmaps(&self) -> [Hpa; 2] {
        self.msr
    }

    fn io_bitmaps(&self) -> [Hpa; 2] {
        self.io
            .each_ref()
            .map(|bitmap| Hpa::new(bitmap.load(Ordering::Acquire)))
    }
}

fn io_frames() -> Result<[Frame; 2], OutOfMemory> {
    let mut frames = [Frame::new()?, Frame::new()?];
    for frame in &mut frames {
        bitmaps::fill_io(frame.bytes_mut());
    }
    Ok(frames)
}

impl Vendor for Vmx {
    const NAME: &'static str = "VMX";
    const HYPERCALL: [u8; 3] = [0x0f, 0x01, 0xc1];
    type Format = Ept;
    type Cpu = VmxCpu;
    type Vcpu = VmxVcpu;
    type Domain = VmxDomain;
    // The VMCS.
    const FRAMES_PER_VCPU: u64 = 1;
    // The virtual-APIC page.
    const FRAMES_PER_APIC: u64 = 1;
    const HEAP_PER_VCPU: u64 = VmxVcpu::HEAP;
    const FRAMES_FOR_PORTS: u64 = 2;

    fn probe() -> Result<Capabilities, Lack> {
        check_cpu()?;
        let registers = Registers::read();
        Controls::new(&registers)?;
        Ok(control::table(&registers))
    }

    fn enable() -> Result<VmxCpu, Lack> {
        check_cpu()?;
        unlock();
        let controls = Controls::new(&Registers::read())?;
        let mut region = Frame::new().map_err(|_| Lack {
            what: "no memory for the VMXON region",
            advice: "give the machine more memory",
        })?;
        region.set_revision(controls.revision);

        let (cr0_fixed0, cr4_fixed0) = (
            msr::read(Msr::IA32_VMX_CR0_FIXED0),
            msr::read(Msr::IA32_VMX_CR4_FIXED0),
        );
        let (cr0_fixed1, cr4_fixed1) = (
            msr::read(Msr::IA32_VMX_CR0_FIXED1),
            msr::read(Msr::IA32_VMX_CR4_FIXED1),
        );
        // SAFETY: the kernel runs with paging and protection on; what VMX demands besides is NE and VMXE.
        unsafe {
            host::set_cr0((host::cr0() | cr0_fixed0) & cr0_fixed1);
            host::set_cr4((host::cr4() | cr4_fixed0 | bits::CR4_VMXE) & cr4_fixed1);
        }
        // SAFETY: the region is this CPU's from here on and carries the revision identifier; CR0, CR4 and
        // IA32_FEATURE_CONTROL have just been set.
        if unsafe { ops::vmxon(region.hpa()) }.is_err() {
            return Err(Lack {
                what: "VMXON failed",
                advice: "something below Plinth uses VMX already, or forbids it",
            });
        }
        ops::flush_everything(controls.flush, controls.has_vpid(), None);

        let switched = if has_tsc_aux() {
            SWITCHED.len()
        } else {
            SWITCHED.len() - 1
        };
        let mut loaded = [0; SWITCHED.len()];
        for (value, &msr) in loaded.iter_mut().zip(&SWITCHED).take(switched) {
            *value = msr::read(msr);
        }
        Ok(VmxCpu {
            id: cpu().id,
            _region: region,
            controls,
            limits: limits(cr0_fixed1, cr4_fixed1),
            cr0_required: cr0_fixed0 & !(bits::CR0_PE | bits::CR0_PG),
            // A machine check in a guest with CR4.MCE clear would shut the CPU down.
            cr4_required: cr4_fixed0 | host::cr4() & bits::CR4_MCE,
            host: HostState::read(),
            tags: TagAllocator::new(cpu().id, u16::MAX.into()),
            loaded,
            switched,
            current: None,
            speculation: speculation::enable(),
        })
    }

    fn disable(_cpu: &mut VmxCpu) {
        // SAFETY: `VmxCpu` exists only while VMX is on, and vCPUs are detached, hence cleared, before.
        unsafe {
            ops::vmxoff();
            host::set_cr4(host::cr4() & !bits::CR4_VMXE);
        }
    }

    fn flush_all(cpu: &mut VmxCpu) {
        cpu.flush();
    }

    fn notes_writes() -> bool {
        vcpu::ept_flags() != 0
    }

    fn keeps_apics() -> bool {
        Controls::new(&Registers::read()).is_ok_and(|controls| controls.keeps_apics)
    }

    fn guest_instructions() -> GuestInstructions {
        let cpuid = CpuId::new();
        let secondary = Controls::new(&Registers::read())
            .map_or(SecondaryControls::empty(), |controls| controls.secondary);
        GuestInstructions {
            invpcid: secondary.contains(SecondaryControls::INVPCID)
                && cpuid
                    .get_extended_feature_info()
                    .is_some_and(|info| info.has_invpcid()),
            rdtscp: secondary.contains(SecondaryControls::RDTSCP) && has_tsc_aux(),
        }
    }

    fn new_domain() -> Result<VmxDomain, OutOfMemory> {
        let shared = SHARED.try_call_once(|| {
            let mut msr = [Frame::new()?, Frame::new()?];
            let [plain, x2apic] = &mut msr;
            bitmaps::fill_msr(plain.bytes_mut());
            bitmaps::fill_msr_x2apic(x2apic.bytes_mut());
            let io = io_frames()?;
            Ok(Bitmaps { msr, io })
        })?;
        Ok(VmxDomain {
            msr: shared.msr.each_ref().map(Frame::hpa),
            io: shared
                .io
                .each_ref()
                .map(|frame| AtomicU64::new(frame.hpa().get())),
            ports: Mutex::new(None),
        })
    }

    fn allow_ports(domain: &VmxDomain, first: u16, count: u16) -> Result<(), OutOfMemory> {
        const HALF: u32 = 0x8000;
        let mut ports = domain.ports.lock();
        let frames = match &mut *ports {
            Some(frames) => frames,
            empty => empty.insert(io_frames()?),
        };
        let range = u32::from(first)..u32::from(first) + u32::from(count);
        let halves = [
            range.start..range.end.min(HALF),
            range.start.max(HALF)..range.end,
        ];
        for ((frame, half), in_force) in frames.iter_mut().zip(halves).zip(&domain.io) {
            if !half.is_empty() {
                let (first, count) = ((half.start % HALF) as u16, (half.end - half.start) as u16);
                clear_bits(frame.bytes_mut(), first, count);
            }
            in_force.store(frame.hpa().get(), Ordering::Release);
        }
        Ok(())
    }
}

impl VmxCpu {
    /// Forgets every cached guest translation. Where the CPU can only forget one context at a time, that of the attached
    /// vCPU goes now and every other one when it is attached next, for its tag is no longer valid.
    fn flush(&mut self) {
        if !ops::flush_everything(self.controls.flush, self.controls.has_vpid(), self.current) {
            self.tags.invalidate_all();
        }
    }
}

/// VMX there and not locked off (SDM 24.6, 24.7).
fn check_cpu() -> Result<(), Lack> {
    if !CpuId::new()
        .get_feature_info()
        .is_some_and(|features| features.has_vmx())
    {
        return Err(Lack {
            what: "this CPU shows no VMX (CPUID.1:ECX.5)",
            advice: "take a CPU with Intel VT-x, or let the hypervisor below pass it on",
        });
    }
    let control = msr::read(Msr::IA32_FEATURE_CONTROL);
    if control & LOCKED != 0 && control & VMX_OUTSIDE_SMX == 0 {
        return Err(Lack {
            what: "the firmware has locked VMX off (IA32_FEATURE_CONTROL)",
            advice: "enable Intel VT-x (virtualisation technology) in the firmware's setup, then switch the machine off and on",
        });
    }
    Ok(())
}

/// Sets and locks IA32_FEATURE_CONTROL where the firmware left that to us.
fn unlock() {
    let control = msr::read(Msr::IA32_FEATURE_CONTROL);
    if control & LOCKED == 0 {
        // SAFETY: this allows VMX and has no effect besides.
        unsafe {
            msr::write(
                Msr::IA32_FEATURE_CONTROL,
                control | VMX_OUTSIDE_SMX | LOCKED,
            )
        }
    }
}

fn has_tsc_aux() -> bool {
    CpuId::new()
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|features| features.has_rdtscp())
}

fn limits(cr0_allowed: u64, cr4_allowed: u64) -> Limits {
    let cpuid = CpuId::new();
    let nx = cpuid
        .get_extended_processor_and_feature_identifiers()
        .is_some_and(|features| features.has_execute_disable());
    let physical_bits = cpuid
        .get_processor_capacity_feature_info()
        .map_or(36, |info| info.physical_address_bits());
    Limits {
        cr0_allowed,
        cr4_allowed,
        efer_allowed: bits::EFER_SCE
            | bits::EFER_LME
            | bits::EFER_LMA
            | if nx { bits::EFER_NXE } else { 0 },
        physical_bits: u32::from(physical_bits),
    }
}
