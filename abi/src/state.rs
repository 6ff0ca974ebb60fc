//! The whole architectural state of a vCPU, as it is set, read and saved.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Parts of a vCPU's state, for `VCPU_GET_STATE` and `VCPU_SET_STATE`.
pub mod part {
    /// [`super::VcpuState`].
    pub const REGISTERS: u64 = 0;
    /// The vector state: an XSAVE area in the standard format (SDM vol. 1 13.4), as long as CPUID leaf 0Dh says, or an FXSAVE area
    /// of 512 bytes without XSAVE.
    pub const VECTOR: u64 = 1;
}

/// A segment register with its hidden part.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Segment {
    /// The visible selector.
    pub selector: u16,
    /// Descriptor attributes, bits 55:52 and 47:40 of the descriptor packed into 12 bits (APM2 15.5.1): type in 3:0, S 4,
    /// DPL 6:5, P 7, AVL 8, L 9, D/B 10, G 11. A segment without P is unusable.
    pub attributes: u16,
    /// Limit in bytes, granularity already applied.
    pub limit: u32,
    /// Base, a linear address.
    pub base: u64,
}

impl Segment {
    /// Attributes of a 64-bit code segment of CPL 0: present, accessed, readable, L, G.
    pub const CODE64: u16 = 0xa9b;
    /// Attributes of a flat 32-bit code segment of CPL 0.
    pub const CODE32: u16 = 0xc9b;
    /// Attributes of a flat writable data segment of DPL 0.
    pub const DATA: u16 = 0xc93;
    /// Attributes of a busy 64-bit (32-bit outside long mode) TSS.
    pub const TSS_BUSY: u16 = 0x08b;
    /// Attributes of an LDT.
    pub const LDT: u16 = 0x082;
    /// Attributes of a real-mode code segment as after reset.
    pub const REAL_CODE: u16 = 0x09b;
    /// Attributes of a real-mode data segment as after reset.
    pub const REAL_DATA: u16 = 0x093;

    /// Whether the present bit is set; a segment without it is unusable.
    pub const fn is_present(&self) -> bool {
        self.attributes & 0x80 != 0
    }

    /// Descriptor privilege level, 0 to 3.
    pub const fn dpl(&self) -> u8 {
        (self.attributes >> 5) as u8 & 3
    }

    /// L: 64-bit code.
    pub const fn is_long(&self) -> bool {
        self.attributes & 0x200 != 0
    }

    /// D/B: 32-bit operands and addresses by default.
    pub const fn is_default_32(&self) -> bool {
        self.attributes & 0x400 != 0
    }
}

/// Every register that a vCPU has, besides vector state (an XSAVE image of its own) and the local APIC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
#[expect(missing_docs, reason = "the registers' names are their documentation")]
pub struct VcpuState {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: Segment,
    pub idtr: Segment,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub xcr0: u64,
    pub dr: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
    pub efer: u64,
    pub pat: u64,
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub sfmask: u64,
    pub kernel_gs_base: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub tsc_aux: u64,
}

impl VcpuState {
    /// The state after RESET or INIT (SDM vol. 3 table 11-1; APM2 table 14-1): real mode at F000:FFF0 with the code
    /// segment's base at 0xFFFF_0000.
    pub const RESET: Self = {
        let data = Segment {
            selector: 0,
            attributes: Segment::REAL_DATA,
            limit: 0xffff,
            base: 0,
        };
        let table = Segment {
            selector: 0,
            attributes: 0,
            limit: 0xffff,
            base: 0,
        };
        Self {
            rax: 0,
            rcx: 0,
            rdx: 0x600,
            rbx: 0,
            rsp: 0,
            rbp: 0,
            rsi: 0,
            rdi: 0,
            r8: 0,
            r9: 0,
            r10: 0,
            r11: 0,
            r12: 0,
            r13: 0,
            r14: 0,
            r15: 0,
            rip: 0xfff0,
            rflags: 2,
            es: data,
            cs: Segment {
                selector: 0xf000,
                attributes: Segment::REAL_CODE,
                limit: 0xffff,
                base: 0xffff_0000,
            },
            ss: data,
            ds: data,
            fs: data,
            gs: data,
            ldtr: Segment {
                selector: 0,
                attributes: Segment::LDT,
                limit: 0xffff,
                base: 0,
            },
            tr: Segment {
                selector: 0,
                attributes: Segment::TSS_BUSY,
                limit: 0xffff,
                base: 0,
            },
            gdtr: table,
            idtr: table,
            cr0: 0x6000_0010,
            cr2: 0,
            cr3: 0,
            cr4: 0,
            xcr0: 1,
            dr: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
            efer: 0,
            pat: 0x0007_0406_0007_0406,
            star: 0,
            lstar: 0,
            cstar: 0,
            sfmask: 0,
            kernel_gs_base: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            tsc_aux: 0,
        }
    };

    /// The state in which a 64-bit Plinth guest starts: long mode, flat segments, paging by the tables at `cr3`, interrupts
    /// off, `entry` in RIP and `stack` in RSP.
    pub const fn long_mode(entry: u64, stack: u64, cr3: u64) -> Self {
        let mut state = Self::flat(entry, Segment::CODE64);
        state.rsp = stack;
        state.cr0 = 0x8001_0033; // PG WP NE ET MP PE
        state.cr3 = cr3;
        state.cr4 = 0x620; // PAE OSFXSR OSXMMEXCPT
        state.efer = 0xd00; // NXE LMA LME
        state
    }

    /// The state in which loaders of 32-bit systems enter them (Multiboot 0.6.96 3.2, Xen's PVH boot ABI): protected mode
    /// without paging, flat segments, interrupts off, `entry` in RIP. There is neither a stack nor a valid GDT: the entered
    /// code brings its own before it loads a segment register.
    pub const fn protected_mode(entry: u32) -> Self {
        let mut state = Self::flat(entry as u64, Segment::CODE32);
        // PVH asks for a busy TSS without an I/O bitmap.
        state.tr.limit = 0x67;
        // PVH wants every writable bit clear but PE; ET reads as 1 on every CPU.
        state.cr0 = 0x11;
        state
    }

    /// The state after reset, but for flat segments with the code segment's attributes, and `entry` in RIP.
    const fn flat(entry: u64, code: u16) -> Self {
        let data = Segment {
            selector: 0x10,
            attributes: Segment::DATA,
            limit: u32::MAX,
            base: 0,
        };
        let mut state = Self::RESET;
        state.rdx = 0;
        state.rip = entry;
        state.cs = Segment {
            selector: 8,
            attributes: code,
            limit: u32::MAX,
            base: 0,
        };
        state.ss = data;
        state.ds = data;
        state.es = data;
        state.fs = data;
        state.gs = data;
        state
    }
}

const _: () = assert!(size_of::<Segment>() == 16);
const _: () = assert!(size_of::<VcpuState>() == 18 * 8 + 10 * 16 + 22 * 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protected_mode_is_flat_and_without_paging() {
        let state = VcpuState::protected_mode(0x10_0000);
        assert_eq!(state.rip, 0x10_0000);
        assert_eq!((state.cr0, state.cr4, state.efer), (0x11, 0, 0));
        // IF, TF and VM are clear; bit 1 is always set.
        assert_eq!(state.rflags, 2);
        for segment in [state.cs, state.ss, state.ds, state.es, state.fs, state.gs] {
            assert_eq!((segment.base, segment.limit), (0, u32::MAX));
            assert!(segment.is_present() && segment.is_default_32() && !segment.is_long());
            assert_eq!(segment.dpl(), 0);
        }
        assert_eq!(state.cs.attributes & 0xf, 0xb, "code, readable, accessed");
        assert_eq!(state.ds.attributes & 0xf, 3, "data, writable, accessed");
        assert_eq!(
            (state.tr.base, state.tr.limit, state.tr.attributes),
            (0, 0x67, Segment::TSS_BUSY)
        );
        let general = [
            state.rax, state.rcx, state.rdx, state.rbx, state.rsp, state.rbp, state.rsi, state.rdi,
        ];
        assert_eq!(general, [0; 8]);
    }
}
