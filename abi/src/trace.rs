//! Records of the trace rings: what the scheduler and the objects did, one ring a CPU.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// One event.
#[derive(
    Clone, Copy, PartialEq, Eq, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Record {
    /// Nanoseconds since boot.
    pub ns: u64,
    /// [`Kind`].
    pub kind: u32,
    /// The domain's number.
    pub domain: u32,
    /// The vCPU's index.
    pub vcpu: u32,
    /// By kind.
    pub detail: u32,
}

/// What happened. Open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[repr(transparent)]
pub struct Kind(pub u32);

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Kind {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The kind in words.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    _ => "unknown",
                }
            }
        }
    };
}

kinds! {
    /// Nothing.
    NONE = 0, "nothing";
    /// A vCPU takes the CPU. `detail`: how the one before left it, one of the next three kinds or [`Kind::CAPPED`], which have a record of their own
    /// only where the CPU then has nothing to do; 0: it had nothing to do, or that vCPU had halted for good, or is over, or found that what it was
    /// about to wait for had come.
    RUN = 1, "run";
    /// Its slice is over.
    PREEMPT = 2, "preempt";
    /// It gave the rest of its slice away.
    YIELD = 3, "yield";
    /// It waits.
    BLOCK = 4, "block";
    /// It waits no longer. `detail`: the CPU it goes to. One that takes the CPU over from whoever woke it has [`Kind::RUN`] alone.
    WAKE = 5, "wake";
    /// It was taken from another CPU. `detail`: from which.
    STEAL = 6, "steal";
    /// Its cap is used up.
    CAPPED = 7, "capped";
    /// The domain was made.
    CREATED = 8, "created";
    /// It was started.
    STARTED = 9, "started";
    /// It was paused.
    PAUSED = 10, "paused";
    /// It was resumed.
    RESUMED = 11, "resumed";
    /// It ended. `detail`: [`crate::domain::Reason`].
    ENDED = 12, "ended";
    /// It was destroyed.
    DESTROYED = 13, "destroyed";
    /// The vCPU waits for a device. `detail`: port, or bits 43:12 of the address.
    DEVICE = 14, "device";
}

const _: () = assert!(size_of::<Record>() == 24);
