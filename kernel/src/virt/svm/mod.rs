//! AMD's extension: SVM with nested paging (APM2 chapter 15).
//!
//! `vmcb`, `exit_code`, `validate`, `exits`, `events`, `shadow`, `registers`, `msrpm`, `features` and `dump` are free of hardware
//! access; `frame` owns what the CPU works on, `enter` is the way into the guest, `vcpu` puts them together. Nothing here
//! decides what a guest's exit means.

#![allow(unsafe_code, reason = "switches SVM on and off")]

pub mod dump;
pub mod enter;
pub mod events;
pub mod exit_code;
pub mod exits;
pub mod features;
pub mod frame;
pub mod msrpm;
pub mod registers;
pub mod shadow;
pub mod validate;
pub mod vcpu;
pub mod vmcb;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use raw_cpuid::CpuId;
use spin::{Mutex, Once};

use self::features::{Identity, VM_CR_LOCK, VM_CR_SVMDIS};
use self::frame::Framed;
use self::validate::{IOPM_BYTES, MSRPM_BYTES, cr4, efer};
use self::vmcb::Vmcb;
use super::tag::TagAllocator;
use super::{Capabilities, GuestInstructions, Lack, OutOfMemory, Vendor, clear_bits};
use crate::arch::msr::{self, Msr};
use crate::arch::speculation;
use crate::mem::nested::Npt;
use crate::mem::{Hpa, PAGE_SIZE};
use crate::rules::speculation::Plan;

pub use self::vcpu::SvmVcpu;

/// AMD SVM.
#[derive(Clone, Copy, Debug)]
pub struct Svm;

/// What a CPU holds while SVM is on.
#[derive(Debug)]
pub struct SvmCpu {
    /// Where VMRUN saves the host's state. What the CPU writes there is its own affair (APM2 15.30.4).
    save_area: Framed<[u8; 4096]>,
    /// Where VMSAVE saved the rest of it.
    host: Framed<Vmcb>,
    /// ASIDs; 0 is the host's (APM2 15.16).
    tags: TagAllocator,
    /// The next VMRUN flushes every translation of every ASID. That is soon enough: what is cached for guests is used by
    /// no one but a running guest.
    flush: bool,
    /// Bits that CR4 has while a guest runs, whatever the guest wrote: a machine check with MCE clear would shut the CPU
    /// down.
    forced_cr4: u64,
    /// TSC_AUX, as long as no vCPU is attached: what the last one has left.
    tsc_aux: u64,
    /// What is done around guests' runs on this CPU.
    speculation: Plan,
    /// What tells this CPU from every other, and from itself before SVM was off.
    id: u32,
}

static NEXT_CPU: AtomicU32 = AtomicU32::new(0);

/// The permission maps that all domains share: MSRs first, then ports.
type Maps = Framed<[u8; (MSRPM_BYTES + IOPM_BYTES) as usize]>;

static SHARED: Once<Maps> = Once::new();

/// The permission maps of a domain.
#[derive(Debug)]
pub struct SvmDomain {
    msrpm: Hpa,
    /// The map of ports that is in force.
    iopm: AtomicU64,
    /// Its own map of ports, once it may use some directly.
    ports: Mutex<Option<Framed<[u8; IOPM_BYTES as usize]>>>,
}

impl SvmDomain {
    const fn msrpm(&self) -> Hpa {
        self.msrpm
    }

    fn iopm(&self) -> Hpa {
        Hpa::new(self.iopm.load(Ordering::Acquire))
    }
}

impl Vendor for Svm {
    const NAME: &'static str = "SVM";
    const HYPERCALL: [u8; 3] = [0x0f, 0x01, 0xd9];
    type Format = Npt;
    type Cpu = SvmCpu;
    type Vcpu = SvmVcpu;
    type Domain = SvmDomain;
    // The control block.
    const FRAMES_PER_VCPU: u64 = 1;
    const HEAP_PER_VCPU: u64 = 0;
    const FRAMES_FOR_PORTS: u64 = IOPM_BYTES / PAGE_SIZE;

    fn probe() -> Result<Capabilities, Lack> {
        let identity = Identity::read();
        identity.lack(|| msr::read(Msr::VM_CR))?;
        Ok(identity.capabilities())
    }

    /// The calling CPU's segment registers, task register, and the MSRs of SYSCALL and SYSENTER are what they stay until
    /// `disable`: they are saved here once.
    fn enable() -> Result<SvmCpu, Lack> {
        let identity = Identity::read();
        identity.lack(|| msr::read(Msr::VM_CR))?;
        let no_memory = Lack {
            what: "there is no memory for the host save area",
            advice: "the machine needs more memory",
        };
        let id = NEXT_CPU.fetch_add(1, Ordering::Relaxed);
        let cpu = SvmCpu {
            save_area: Framed::zeroed().map_err(|_| no_memory)?,
            host: Framed::zeroed().map_err(|_| no_memory)?,
            tags: TagAllocator::new(id, identity.asids.saturating_sub(1)),
            flush: true,
            forced_cr4: read_cr4() & cr4::MCE,
            // Not a value of the register: it has 32 bits.
            tsc_aux: u64::MAX,
            speculation: speculation::enable(),
            id,
        };
        let vm_cr = msr::read(Msr::VM_CR);
        // SAFETY: these MSRs govern SVM only, which nobody uses yet on this CPU. The save area is a frame of its own and
        // stays until `disable`, or for ever. SVME adds instructions and changes none that the compiler knows.
        unsafe {
            if vm_cr & VM_CR_SVMDIS != 0 && vm_cr & VM_CR_LOCK == 0 {
                msr::write(Msr::VM_CR, vm_cr & !VM_CR_SVMDIS);
            }
            msr::write(Msr::IA32_EFER, msr::read(Msr::IA32_EFER) | efer::SVME);
            msr::write(Msr::VM_HSAVE_PA, cpu.save_area.hpa().get());
        }
        if msr::read(Msr::IA32_EFER) & efer::SVME == 0
            || msr::read(Msr::VM_HSAVE_PA) != cpu.save_area.hpa().get()
        {
            return Err(Lack {
                what: "this CPU does not let SVM be switched on",
                advice: "enable SVM in the firmware setup",
            });
        }
        // SAFETY: SVM is on, and the frame is this CPU's.
        unsafe { enter::save_host(cpu.host.hpa()) };
        Ok(cpu)
    }

    fn disable(cpu: &mut SvmCpu) {
        // A vCPU that is attached again after another `enable` must not take its ASID for valid.
        cpu.tags.invalidate_all();
        // SAFETY: no guest runs on this CPU, GIF is set outside `enter`, and nothing else needs SVM.
        unsafe {
            msr::write(Msr::IA32_EFER, msr::read(Msr::IA32_EFER) & !efer::SVME);
            if msr::read(Msr::IA32_EFER) & efer::SVME == 0 {
                let _ = msr::try_write(Msr::VM_HSAVE_PA, 0);
            }
        }
    }

    fn flush_all(cpu: &mut SvmCpu) {
        cpu.flush = true;
    }

    fn notes_writes() -> bool {
        true
    }

    fn guest_instructions() -> GuestInstructions {
        let cpuid = CpuId::new();
        GuestInstructions {
            invpcid: cpuid
                .get_extended_feature_info()
                .is_some_and(|info| info.has_invpcid()),
            rdtscp: Identity::read().has_tsc_aux(),
        }
    }

    fn new_domain() -> Result<SvmDomain, OutOfMemory> {
        let maps = SHARED.try_call_once(|| {
            let mut maps = Maps::zeroed()?;
            // Every port exits.
            maps.fill(0xff);
            if let Some(msrs) = maps.first_chunk_mut() {
                msrpm::fill(msrs);
            }
            Ok(maps)
        })?;
        Ok(SvmDomain {
            msrpm: maps.hpa(),
            iopm: AtomicU64::new(maps.hpa().get() + MSRPM_BYTES),
            ports: Mutex::new(None),
        })
    }

    fn allow_ports(domain: &SvmDomain, first: u16, count: u16) -> Result<(), OutOfMemory> {
        let mut ports = domain.ports.lock();
        let map = match &mut *ports {
            Some(map) => map,
            empty => {
                let mut map: Framed<[u8; IOPM_BYTES as usize]> = Framed::zeroed()?;
                map.fill(0xff);
                empty.insert(map)
            }
        };
        clear_bits(&mut **map, first, count);
        domain.iopm.store(map.hpa().get(), Ordering::Release);
        Ok(())
    }
}

fn read_cr4() -> u64 {
    let value: u64;
    // SAFETY: reading CR4 has no effect.
    unsafe {
        core::arch::asm!("mov {}, cr4", out(reg) value, options(nomem, nostack, preserves_flags))
    };
    value
}
