//! What travels between interrupt controllers: whom it is for, and what is to happen there.
//!
//! Messages come from a local APIC's interrupt command register (SDM vol. 3 11.6.1, 11.12.9), from a device's message
//! (11.11), and from the I/O APIC's redirection table, which has the same fields in other places.

use bitfield_struct::bitfield;

/// Whom a message is for (SDM vol. 3 11.6.2, 11.12.10). What an identifier means depends on the mode of the APIC that
/// reads it; [`Requests::matches`](super::Requests::matches) decides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// Every APIC, the sender's as well.
    All,
    /// Every APIC but the one with this identifier, the sender's.
    AllBut(u32),
    /// The APIC with this identifier.
    Physical(u32),
    /// The APICs whose logical identifier this selects.
    Logical(u32),
}

impl Destination {
    const fn of(id: u32, logical: bool) -> Self {
        if logical {
            Self::Logical(id)
        } else {
            Self::Physical(id)
        }
    }

    /// What the destination field of a device's message, of the I/O APIC, or of a local APIC in xAPIC mode means. 0xff is all
    /// of them in either mode, and so the processor 255 cannot be addressed from there.
    pub const fn of_device(id: u16, logical: bool) -> Self {
        match id {
            0xff => Self::All,
            id => Self::of(id as u32, logical),
        }
    }
}

/// What is to happen at the destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Delivery {
    /// An interrupt at each.
    Fixed(u8),
    /// An interrupt at one of them.
    LowestPriority(u8),
    /// A system management interrupt. Guests have no such mode: it is ignored.
    Smi,
    /// A non-maskable interrupt.
    Nmi,
    /// A reset of the processor, which then waits for its start-up.
    Init,
    /// The end of an INIT that was asserted; processors since the Pentium 4 ignore it (SDM vol. 3 11.6.1).
    InitDeassert,
    /// The processor that waits for it starts at this page of the first MiB.
    StartUp(u8),
    /// An interrupt whose vector the PIC knows.
    ExtInt,
}

impl Delivery {
    /// What the three bits of a delivery mode mean in messages of devices and of the I/O APIC; `None`: reserved.
    pub const fn of_bits(mode: u8, vector: u8) -> Option<Self> {
        Some(match mode {
            0b000 => Self::Fixed(vector),
            0b001 => Self::LowestPriority(vector),
            0b010 => Self::Smi,
            0b100 => Self::Nmi,
            0b101 => Self::Init,
            0b111 => Self::ExtInt,
            _ => return None,
        })
    }

    /// The vector of an interrupt that goes through IRR and ISR.
    pub const fn vector(self) -> Option<u8> {
        match self {
            Self::Fixed(vector) | Self::LowestPriority(vector) => Some(vector),
            _ => None,
        }
    }
}

/// A message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// Whom it is for.
    pub destination: Destination,
    /// What is to happen.
    pub delivery: Delivery,
    /// Level-triggered: the end of the interrupt is told to the I/O APIC.
    pub level: bool,
}

/// What a write of the interrupt command register sends, but for its destination (SDM vol. 3 figure 11-12).
#[bitfield(u64, debug = false)]
struct Command {
    vector: u8,
    #[bits(3)]
    mode: u8,
    logical: bool,
    #[bits(2)]
    __: u8,
    assert: bool,
    level: bool,
    #[bits(2)]
    __: u8,
    #[bits(2)]
    shorthand: u8,
    #[bits(12)]
    __: u16,
    /// All of it in x2APIC mode, the upper eight bits in xAPIC mode.
    destination: u32,
}

impl Command {
    const SELF: u8 = 1;
    const ALL: u8 = 2;
    const ALL_BUT_SELF: u8 = 3;

    const fn delivery(self) -> Option<Delivery> {
        match self.mode() {
            0b101 if self.level() && !self.assert() => Some(Delivery::InitDeassert),
            0b110 => Some(Delivery::StartUp(self.vector())),
            0b111 => None,
            mode => Delivery::of_bits(mode, self.vector()),
        }
    }
}

/// The address of a device's message (SDM vol. 3 11.11.1), with the upper bits of the destination where KVM and Hyper-V
/// have them: an identifier of 15 bits, for more CPUs than 255 without interrupt remapping.
#[bitfield(u64, debug = false)]
struct MsiAddress {
    #[bits(2)]
    __: u8,
    logical: bool,
    redirect: bool,
    #[bits(1)]
    __: u8,
    #[bits(7)]
    destination_high: u8,
    destination: u8,
    /// 0xfee.
    #[bits(44)]
    base: u64,
}

/// The data of a device's message (SDM vol. 3 11.11.2).
#[bitfield(u32, debug = false)]
struct MsiData {
    vector: u8,
    #[bits(3)]
    mode: u8,
    #[bits(3)]
    __: u8,
    assert: bool,
    level: bool,
    __: u16,
}

impl Message {
    /// What a write of `command` to the interrupt command register of the APIC `sender` sends (SDM vol. 3 11.6.1, 11.12.9).
    /// `None`: nothing, for the combination is reserved, or table 11-3 calls it invalid.
    ///
    /// It is edge-triggered whatever the trigger mode says (table 11-3, note 1).
    pub const fn of_command(command: u64, x2apic: bool, sender: u32) -> Option<Self> {
        let command = Command::from_bits(command);
        let Some(delivery) = command.delivery() else {
            return None;
        };
        let fixed = matches!(delivery, Delivery::Fixed(_));
        let destination = match command.shorthand() {
            Command::SELF if fixed => Destination::Physical(sender),
            Command::ALL if fixed => Destination::All,
            Command::SELF | Command::ALL => return None,
            Command::ALL_BUT_SELF => Destination::AllBut(sender),
            _ => match (x2apic, command.destination()) {
                (true, u32::MAX) => Destination::All,
                (true, id) => Destination::of(id, command.logical()),
                (false, id) => Destination::of_device((id >> 24) as u16, command.logical()),
            },
        };
        Some(Self {
            destination,
            delivery,
            level: false,
        })
    }

    /// What a device's write of `data` to `address` sends (SDM vol. 3 11.11). `None`: nothing; the address is not that of a
    /// message, the delivery mode is reserved, or a level is deasserted.
    ///
    /// The redirection hint with a logical destination asks for one of those that it selects: lowest priority.
    pub const fn of_msi(address: u64, data: u32) -> Option<Self> {
        let (address, data) = (MsiAddress::from_bits(address), MsiData::from_bits(data));
        if address.base() != 0xfee || (data.level() && !data.assert()) {
            return None;
        }
        let delivery = match Delivery::of_bits(data.mode(), data.vector()) {
            Some(Delivery::Fixed(vector)) if address.redirect() && address.logical() => {
                Delivery::LowestPriority(vector)
            }
            Some(delivery) => delivery,
            None => return None,
        };
        let id = (address.destination_high() as u16) << 8 | address.destination() as u16;
        Some(Self {
            destination: Destination::of_device(id, address.logical()),
            delivery,
            level: data.level() && delivery.vector().is_some(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn message(destination: Destination, delivery: Delivery) -> Option<Message> {
        Some(Message {
            destination,
            delivery,
            level: false,
        })
    }

    #[test]
    fn a_command_of_xapic_mode_has_eight_bits_of_destination() {
        let physical = Message::of_command(0x0500_0000_0000_4041, false, 0);
        assert_eq!(
            physical,
            message(Destination::Physical(5), Delivery::Fixed(0x41))
        );
        let logical = Message::of_command(0x0500_0000_0000_4941, false, 0);
        assert_eq!(
            logical,
            message(Destination::Logical(5), Delivery::LowestPriority(0x41))
        );
        for command in [0xff00_0000_0000_4041, 0xff00_0000_0000_4841] {
            assert_eq!(
                Message::of_command(command, false, 0),
                message(Destination::All, Delivery::Fixed(0x41))
            );
        }
    }

    #[test]
    fn a_command_of_x2apic_mode_has_32_bits_of_destination() {
        assert_eq!(
            Message::of_command(0x0001_0203_0000_4041, true, 0),
            message(Destination::Physical(0x1_0203), Delivery::Fixed(0x41))
        );
        assert_eq!(
            Message::of_command(0x0001_0203_0000_0841, true, 0),
            message(Destination::Logical(0x1_0203), Delivery::Fixed(0x41))
        );
        assert_eq!(
            Message::of_command(0x0000_00ff_0000_4041, true, 0),
            message(Destination::Physical(0xff), Delivery::Fixed(0x41)),
            "0xff is a processor like others"
        );
        assert_eq!(
            Message::of_command(0xffff_ffff_0000_4041, true, 0),
            message(Destination::All, Delivery::Fixed(0x41))
        );
    }

    #[test]
    fn how_a_processor_is_started() {
        let start = |low: u64| Message::of_command(1 << 56 | low, false, 0);
        let to = Destination::Physical(1);
        assert_eq!(start(0xc500), message(to, Delivery::Init));
        assert_eq!(start(0x4500), message(to, Delivery::Init), "edge-triggered");
        assert_eq!(start(0x8500), message(to, Delivery::InitDeassert));
        assert_eq!(start(0x4608), message(to, Delivery::StartUp(8)));
        assert_eq!(start(0x0608), message(to, Delivery::StartUp(8)));
    }

    #[test]
    fn shorthands_of_table_11_3() {
        let send = |low: u64| Message::of_command(0x0300_0000_0000_0000 | low, false, 7);
        let (own, all, others) = (1 << 18, 2 << 18, 3 << 18);
        let fixed = Delivery::Fixed(0x80);
        assert_eq!(
            send(own | 0x4080),
            message(Destination::Physical(7), fixed),
            "self"
        );
        assert_eq!(send(all | 0x4080), message(Destination::All, fixed));
        assert_eq!(
            send(others | 0x4080),
            message(Destination::AllBut(7), fixed)
        );
        assert_eq!(
            send(others | 0x4400),
            message(Destination::AllBut(7), Delivery::Nmi)
        );
        assert_eq!(
            send(others | 0xc500),
            message(Destination::AllBut(7), Delivery::Init)
        );
        for mode in 1..8 {
            assert_eq!(send(own | 0x4080 | mode << 8), None, "self, {mode}");
            assert_eq!(send(all | 0x4080 | mode << 8), None, "all, {mode}");
        }
    }

    #[test]
    fn reserved_delivery_modes_send_nothing() {
        assert_eq!(Message::of_command(0x4341, false, 0), None);
        assert_eq!(Message::of_command(0x4741, false, 0), None);
        assert_eq!(Message::of_msi(0xfee0_0000, 0x4341), None);
        assert_eq!(Message::of_msi(0xfee0_0000, 0x4641), None);
    }

    #[test]
    fn a_message_of_a_device() {
        assert_eq!(
            Message::of_msi(0xfee0_3000, 0x4031),
            message(Destination::Physical(3), Delivery::Fixed(0x31))
        );
        assert_eq!(
            Message::of_msi(0xfee0_3004, 0x0131),
            message(Destination::Logical(3), Delivery::LowestPriority(0x31))
        );
        assert_eq!(
            Message::of_msi(0xfee0_300c, 0x0031),
            message(Destination::Logical(3), Delivery::LowestPriority(0x31)),
            "redirection hint"
        );
        assert_eq!(
            Message::of_msi(0xfee0_3008, 0x0031),
            message(Destination::Physical(3), Delivery::Fixed(0x31)),
            "there is no choice with a physical destination"
        );
        assert_eq!(
            Message::of_msi(0xfeef_f000, 0x0031),
            message(Destination::All, Delivery::Fixed(0x31))
        );
        assert_eq!(
            Message::of_msi(0xfee0_0000, 0x0400),
            message(Destination::Physical(0), Delivery::Nmi)
        );
    }

    #[test]
    fn a_message_has_15_bits_of_destination() {
        // 0x1234: the upper seven in bits 11 to 5.
        assert_eq!(
            Message::of_msi(0xfee0_0000 | 0x34 << 12 | 0x12 << 5, 0x31),
            message(Destination::Physical(0x1234), Delivery::Fixed(0x31))
        );
        assert_eq!(
            Message::of_msi(0xfeef_f000 | 1 << 5, 0x31),
            message(Destination::Physical(0x1ff), Delivery::Fixed(0x31)),
            "not a broadcast"
        );
    }

    #[test]
    fn a_level_is_asserted_or_nothing() {
        let level = Message::of_msi(0xfee0_0000, 0xc031);
        assert!(level.is_some_and(|message| message.level));
        assert_eq!(Message::of_msi(0xfee0_0000, 0x8031), None);
        let nmi = Message::of_msi(0xfee0_0000, 0xc400);
        assert_eq!(nmi, message(Destination::Physical(0), Delivery::Nmi));
    }

    #[test]
    fn other_addresses_are_memory() {
        for address in [0, 0xfed0_0000, 0xfef0_0000, 1 << 32 | 0xfee0_0000, u64::MAX] {
            assert_eq!(Message::of_msi(address, 0x31), None, "{address:#x}");
        }
    }

    proptest! {
        #[test]
        fn every_command_and_message_can_be_decoded(a in any::<u64>(), data in any::<u32>(), x2apic in any::<bool>()) {
            let command = Message::of_command(a, x2apic, 3);
            prop_assert!(command.is_none_or(|message| !message.level));
            let message = Message::of_msi(0xfee0_0000 | a & 0xf_ffff, data);
            if let Some(message) = message {
                prop_assert_eq!(message.level, data & 0x8000 != 0 && message.delivery.vector().is_some());
            }
        }
    }
}
