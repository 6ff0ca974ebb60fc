//! The commands: what `help` says of each, and what its arguments can be completed to.

use alloc::format;
use alloc::string::String;

/// What an argument can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Argument {
    /// A command's name.
    Command,
    /// A machine's name.
    Machine,
    /// A domain's name.
    Domain,
    /// A machine's or a domain's name.
    Name,
    /// One of these words.
    Word(&'static [&'static str]),
    /// Anything.
    Any,
}

/// A command.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    /// Its arguments, as `help` shows them.
    pub usage: &'static str,
    /// What it does, in a line.
    pub summary: &'static str,
    /// More about it, in lines of at most 78 columns.
    pub details: &'static str,
    /// Its arguments, for completion.
    pub arguments: &'static [Argument],
    /// Whether the last argument can come again.
    pub repeats: bool,
}

impl Entry {
    /// What the argument with this index, from 0, can be.
    pub fn argument(&self, index: usize) -> Option<Argument> {
        self.arguments
            .get(index)
            .or(self.arguments.last().filter(|_| self.repeats))
            .copied()
    }

    /// What `help` lists: a line, or two where the arguments are long.
    pub fn listed(&self) -> String {
        const WIDTH: usize = 22;
        let synopsis = self.synopsis();
        if synopsis.len() > WIDTH {
            return format!("{synopsis}\n{:WIDTH$}  {}", "", self.summary);
        }
        format!("{synopsis:WIDTH$}  {}", self.summary)
    }

    /// Name and arguments.
    pub fn synopsis(&self) -> String {
        let mut text = String::from(self.name);
        if !self.usage.is_empty() {
            text.push(' ');
            text.push_str(self.usage);
        }
        text
    }
}

/// The command of this name.
pub fn find(name: &str) -> Option<&'static Entry> {
    COMMANDS.iter().find(|entry| entry.name == name)
}

const NONE: &[Argument] = &[];

/// All commands, in the order in which `help` lists them.
pub static COMMANDS: &[Entry] = &[
    Entry {
        name: "help",
        usage: "[COMMAND]",
        summary: "list the commands, or tell more about one",
        details: "Several commands can stand on a line, with `;` between them. `#` begins a\n\
                  comment. A NAME may end with `*`, which stands for anything, or be a domain's\n\
                  number. Ctrl-C breaks off a command that takes time; Tab completes.",
        arguments: &[Argument::Command],
        repeats: false,
    },
    Entry {
        name: "list",
        usage: "",
        summary: "list the domains",
        details: "Also those that other domains have made: they have `*` in the column ON-END,\n\
                  for the control guest keeps no console of theirs and applies no policy.",
        arguments: NONE,
        repeats: false,
    },
    Entry {
        name: "machines",
        usage: "",
        summary: "list the machines that can be created",
        details: "A machine is the file machines/NAME.toml of the module archive, or an image\n\
                  guests/NAME without such a file, which is then created with usual values.\n\
                  A file with a mistake is listed with the mistake.",
        arguments: NONE,
        repeats: false,
    },
    Entry {
        name: "create",
        usage: "NAME [COUNT | as DOMAIN]",
        summary: "make a domain of the machine NAME, without starting it",
        details: "The domain is called NAME, or DOMAIN. With COUNT, so many are made, which are\n\
                  called NAME-1, NAME-2 and so on.",
        arguments: &[Argument::Machine, Argument::Word(&["as"]), Argument::Any],
        repeats: false,
    },
    Entry {
        name: "start",
        usage: "NAME...",
        summary: "start domains; what does not exist yet is created",
        details: "A domain that has ended is not started again: `restart` makes it anew.",
        arguments: &[Argument::Name],
        repeats: true,
    },
    Entry {
        name: "run",
        usage: "NAME...",
        summary: "run machines to their ends, and show their consoles",
        details: "What is left of a domain of the same name that has ended is taken back first.\n\
                  Lines of the consoles have the domain's name before them. Fails if a domain\n\
                  ends otherwise than its file expects. Ctrl-C leaves them running.",
        arguments: &[Argument::Machine],
        repeats: true,
    },
    Entry {
        name: "pause",
        usage: "NAME...",
        summary: "hold domains",
        details: "Their vCPUs run no more until `resume`.",
        arguments: &[Argument::Domain],
        repeats: true,
    },
    Entry {
        name: "resume",
        usage: "NAME...",
        summary: "let paused domains go on",
        details: "",
        arguments: &[Argument::Domain],
        repeats: true,
    },
    Entry {
        name: "stop",
        usage: "NAME...",
        summary: "end domains; their machines' on-end policy applies",
        details: "A guest that can be asked to shut down will be asked first; none can yet, so\n\
                  this ends it where it stands. With the policy `destroy` what is left of it\n\
                  is taken back; with `keep` and `restart` it stays, to be looked at.",
        arguments: &[Argument::Domain],
        repeats: true,
    },
    Entry {
        name: "kill",
        usage: "NAME...",
        summary: "end domains at once; what is left of them stays",
        details: "`info` and `log` show what it was doing, and `destroy` takes it back. No\n\
                  policy applies: it is neither restarted nor destroyed.",
        arguments: &[Argument::Domain],
        repeats: true,
    },
    Entry {
        name: "restart",
        usage: "NAME...",
        summary: "end domains, and make and start them anew",
        details: "From the machine's file: what was changed with `set` is forgotten.",
        arguments: &[Argument::Domain],
        repeats: true,
    },
    Entry {
        name: "destroy",
        usage: "NAME...",
        summary: "take back what has ended or was never started",
        details: "Their consoles' last 64 KiB can still be read with `log`, until sixteen others\n\
                  have been destroyed.",
        arguments: &[Argument::Domain],
        repeats: true,
    },
    Entry {
        name: "wait",
        usage: "NAME [SECONDS]",
        summary: "wait until a domain has ended",
        details: "Fails if it ends otherwise than its file expects, or not in time.",
        arguments: &[Argument::Domain, Argument::Any],
        repeats: false,
    },
    Entry {
        name: "sleep",
        usage: "SECONDS",
        summary: "wait so long",
        details: "",
        arguments: &[Argument::Any],
        repeats: false,
    },
    Entry {
        name: "info",
        usage: "NAME",
        summary: "show a domain in full",
        details: "The registers of its vCPUs are shown while it is paused and after its end.",
        arguments: &[Argument::Domain],
        repeats: false,
    },
    Entry {
        name: "top",
        usage: "[SAMPLES]",
        summary: "watch the vCPUs: CPU share, exits, memory",
        details: "Redrawn each second, the busiest first; any key leaves. With SAMPLES, so many\n\
                  tables are printed one below the other instead.\n\
                  RUN%: time it ran. STEAL%: time it could have run but for others or its cap.\n\
                  Both are shares of one CPU. EXITS/S: exits a second, the two most frequent\n\
                  kinds by name.",
        arguments: &[Argument::Any],
        repeats: false,
    },
    Entry {
        name: "console",
        usage: "NAME",
        summary: "show a console and type into it; Ctrl-] leaves",
        details: "Begins with the last 20 lines. What could drive your terminal is made\n\
                  harmless: control characters are shown as ^X.",
        arguments: &[Argument::Domain],
        repeats: false,
    },
    Entry {
        name: "log",
        usage: "NAME",
        summary: "print what a domain has written to its console",
        details: "The last 64 KiB of it; also of one that has ended or was destroyed.",
        arguments: &[Argument::Domain],
        repeats: false,
    },
    Entry {
        name: "set",
        usage: "NAME weight|cap|pin VALUE",
        summary: "change how a domain's vCPUs are scheduled",
        details: "weight 16 to 4096: its share of a CPU in proportion to others', 256 as a rule.\n\
                  cap 1 to 100: most of one CPU's time for each vCPU, in percent; `none`.\n\
                  pin: the number of the CPU that it runs on; `any`.",
        arguments: &[
            Argument::Domain,
            Argument::Word(&["weight", "cap", "pin"]),
            Argument::Word(&["any", "none"]),
        ],
        repeats: false,
    },
    Entry {
        name: "dmesg",
        usage: "[LINES]",
        summary: "print the kernel's log, or its last lines",
        details: "",
        arguments: &[Argument::Any],
        repeats: false,
    },
    Entry {
        name: "trace",
        usage: "[COUNT [CPU]]",
        summary: "print the last events of scheduler and objects",
        details: "The last COUNT of them, 20 as a rule, of one CPU or of all in order.",
        arguments: &[Argument::Any],
        repeats: true,
    },
    Entry {
        name: "version",
        usage: "",
        summary: "show versions, CPU, and what is left of the machine",
        details: "",
        arguments: NONE,
        repeats: false,
    },
    Entry {
        name: "crash",
        usage: "[fault | panic]",
        summary: "crash the control guest itself, to see the recovery",
        details: "`fault`, the usual one, writes where no memory is; `panic` panics. The kernel\n\
                  starts the control guest anew, all other domains keep running, and the new\n\
                  control guest finds them again.",
        arguments: &[Argument::Word(&["fault", "panic"])],
        repeats: false,
    },
    Entry {
        name: "shutdown",
        usage: "[STATUS | last]",
        summary: "end the machine with a status, 0 as a rule",
        details: "All domains end with it. STATUS is 0 to 100, and what an emulator hands to its\n\
                  caller. `last` stands for 0 if the last command succeeded, else 1.",
        arguments: &[Argument::Word(&["last"])],
        repeats: false,
    },
    Entry {
        name: "reboot",
        usage: "",
        summary: "reset the machine",
        details: "All domains end with it.",
        arguments: NONE,
        repeats: false,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_fits_the_screen() {
        for entry in COMMANDS {
            assert!(
                entry.listed().lines().all(|line| line.len() <= 79),
                "{}",
                entry.name
            );
            assert!(
                entry.details.lines().all(|line| line.len() <= 78),
                "{}",
                entry.name
            );
        }
    }

    #[test]
    fn names_are_unique() {
        for entry in COMMANDS {
            assert!(
                core::ptr::eq(find(entry.name).unwrap(), entry),
                "{}",
                entry.name
            );
        }
    }
}
