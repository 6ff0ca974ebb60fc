//! PCI's configuration space by ports 0xcf8 and 0xcfc (PCI Local Bus 3.0, 3.2.2.3.2), with nothing on the bus but its host bridge.
//!
//! An operating system looks for the bridge to see whether the mechanism works at all, and then knows that there is nothing else.

/// CONFIG_ADDRESS: written and read in 32 bits.
pub const ADDRESS: u16 = 0xcf8;
/// CONFIG_DATA: four bytes.
pub const DATA: u16 = 0xcfc;

/// CONFIG_ADDRESS: bit 31 enables configuration cycles; bits 30:24 and 1:0 read as 0.
const ENABLE: u32 = 1 << 31;
const WRITABLE: u32 = ENABLE | 0x00ff_fffc;
/// Bits of CONFIG_ADDRESS that select bus, device and function.
const FUNCTION: u32 = 0x00ff_ff00;

/// Vendor and device: the host bridge of QEMU's generic PCIe host, which no driver knows a workaround for.
const IDENTITY: u32 = 0x0008_1b36;
/// Class: host bridge (class code 06H, subclass 00H); revision 0.
const CLASS: u32 = 0x0600_0000;

/// The configuration mechanism.
#[derive(Clone, Debug, Default)]
pub struct Pci {
    address: u32,
}

impl Pci {
    /// Whether the access is one of these.
    pub const fn owns(port: u16, size: u32) -> bool {
        port == ADDRESS && size == 4 || port & !3 == DATA
    }

    /// A read of `size` bytes.
    pub fn read(&self, port: u16, size: u32) -> u32 {
        if port == ADDRESS {
            return self.address;
        }
        if size > 4 - u32::from(port & 3) {
            return u32::MAX;
        }
        self.register() >> (8 * (port & 3))
    }

    /// A write of `size` bytes. The bridge has nothing that could be written.
    pub const fn write(&mut self, port: u16, value: u32) {
        if port == ADDRESS {
            self.address = value & WRITABLE;
        }
    }

    /// The register that CONFIG_ADDRESS selects: all ones where there is no function.
    const fn register(&self) -> u32 {
        if self.address & ENABLE == 0 || self.address & FUNCTION != 0 {
            return u32::MAX;
        }
        match self.address & 0xfc {
            0x00 => IDENTITY,
            0x08 => CLASS,
            // No base addresses, no interrupt, no capabilities; type 0, one function.
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bridge_is_all_there_is() {
        let mut pci = Pci::default();
        assert_eq!(
            pci.read(DATA, 4),
            u32::MAX,
            "no cycle without the enable bit"
        );
        pci.write(ADDRESS, 0x8000_0000);
        assert_eq!(pci.read(ADDRESS, 4), 0x8000_0000);
        assert_eq!(pci.read(DATA, 4), IDENTITY);
        assert_eq!(pci.read(DATA + 2, 2) & 0xffff, 8);
        pci.write(ADDRESS, 0x8000_0008);
        assert_eq!(pci.read(DATA + 2, 2) & 0xffff, 0x0600, "class code");
        for other in [0x8000_0100, 0x8000_0800, 0x8001_0000] {
            pci.write(ADDRESS, other);
            assert_eq!(pci.read(DATA, 4), u32::MAX, "{other:#x}");
        }
        pci.write(ADDRESS, u32::MAX);
        assert_eq!(pci.read(ADDRESS, 4), 0x80ff_fffc);
        assert_eq!(pci.read(DATA + 3, 4), u32::MAX, "across the end");
    }
}
