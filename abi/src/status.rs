//! Status codes: what RAX holds when a hypercall returns.

use core::fmt;

/// The outcome of a hypercall. Open: a later kernel may return codes that this version does not name.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Status(pub u64);

macro_rules! statuses {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $text:literal;)*) => {
        impl Status {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The code in words.
            pub const fn text(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)*
                    _ => "unknown status",
                }
            }

            /// The code's name, as in the source.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    _ => "UNKNOWN",
                }
            }
        }
    };
}

statuses! {
    /// Done.
    OK = 0, "done";
    /// Part is done; call again with the same arguments to go on.
    AGAIN = 1, "more work is left, call again";
    /// No call has this number.
    NO_CALL = 2, "no such hypercall";
    /// An argument is misaligned, out of its range, or has reserved bits set.
    BAD_ARGUMENT = 3, "bad argument";
    /// A buffer does not lie wholly in memory that the caller may access so.
    BAD_ADDRESS = 4, "bad address";
    /// The handle names nothing.
    BAD_HANDLE = 5, "no such handle";
    /// The handle names an object of another type.
    WRONG_TYPE = 6, "handle of another type";
    /// The handle lacks a right that the call needs.
    NO_RIGHT = 7, "missing right";
    /// The object is not in a state in which this can be done.
    WRONG_STATE = 8, "wrong state";
    /// The charged domain's budget does not suffice.
    OVER_BUDGET = 9, "over budget";
    /// The machine has too little memory left.
    NO_MEMORY = 10, "out of memory";
    /// What should be made exists already.
    EXISTS = 11, "exists already";
    /// What was asked for does not exist.
    NOT_FOUND = 12, "not found";
    /// The time came before the event.
    TIMED_OUT = 13, "timed out";
    /// This machine cannot do it.
    NOT_SUPPORTED = 14, "not supported on this machine";
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}
