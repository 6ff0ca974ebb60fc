//! The shell: reads command lines and does what they say.

use alloc::string::String;
use alloc::vec::Vec;

use embassy_futures::select::{Either, select};
use embassy_time::{Duration, Instant, Timer, with_timeout};
use plinth_guest_control::command::{self, COMMANDS, Command, Copies, Crash, Exit, Names, Verb};
use plinth_guest_control::config::Seconds;
use plinth_guest_control::format;
use plinth_guest_control::plain::Plain;
use plinth_guest_control::report::is_trouble;
use plinth_guest_control::top;
use plinth_rt::abi::call::power;

use crate::control::Control;
use crate::guest::Asked;
use crate::kernel_log::KernelLog;
use crate::{crash, run, show};

/// Ctrl-], which leaves a console.
const LEAVE: u8 = 0x1d;
/// Lines of a console that are shown when somebody attaches to it.
const BACKLOG: usize = 20;
/// Bytes of a console that are shown at a time.
const CHUNK: usize = 2048;
/// How often `top` is redrawn.
const REDRAW: Duration = Duration::from_secs(1);

/// The error of a command that Ctrl-C broke off: what is left of its line is not done.
const BROKEN_OFF: &str = "broken off";

type Result = core::result::Result<(), String>;

/// Greets, and obeys for ever.
pub async fn shell(control: &Control) -> ! {
    loop {
        let line = control
            .terminal
            .read_line(|text| command::complete(text, &names(control)))
            .await;
        for words in command::split(&line) {
            let result = match command::parse(&words) {
                Ok(command) => obey(control, command).await,
                Err(why) => Err(why),
            };
            control.succeeded.set(result.is_ok());
            if let Err(why) = result {
                control.terminal.line(&alloc::format!("error: {why}"));
                if why == BROKEN_OFF {
                    break;
                }
            }
        }
    }
}

fn names(control: &Control) -> Names {
    Names {
        machines: control.archive.machines().into_iter().collect(),
        domains: control
            .guests
            .borrow()
            .values()
            .map(|guest| guest.name.clone())
            .collect(),
    }
}

/// Does a command; Ctrl-C breaks off what takes time.
async fn obey(control: &Control, command: Command) -> Result {
    match command {
        // These read the keyboard themselves.
        Command::Console(name) => console(control, &name).await,
        Command::Top(None) => watch(control).await,
        command => match select(quietly(control, command), control.terminal.interrupted()).await {
            Either::First(result) => result,
            Either::Second(()) => Err(BROKEN_OFF.into()),
        },
    }
}

/// Does a command that does not read the keyboard.
async fn quietly(control: &Control, command: Command) -> Result {
    match command {
        Command::Help(about) => {
            help(control, about);
            Ok(())
        }
        Command::List => show::list(control).await,
        Command::Machines => show::machines(control).await,
        Command::Create { machine, copies } => create(control, &machine, &copies).await,
        Command::Each(verb, names) => each(control, verb, &names).await,
        Command::Run(machines) => run::command(control, &machines).await,
        Command::Wait(name, limit) => wait(control, &name, limit).await,
        Command::Sleep(time) => {
            Timer::after(Duration::from_nanos(time.0)).await;
            Ok(())
        }
        Command::Info(name) => show::info(control, &name).await,
        Command::Top(samples) => samples_of_top(control, samples.unwrap_or(1)).await,
        Command::Log(name) => match control.find_one(&name) {
            Ok(number) => {
                show::log(control, number).await;
                Ok(())
            }
            Err(_) if show::past_log(control, &name).await => Ok(()),
            Err(why) => Err(why),
        },
        Command::Set(name, setting) => {
            for number in control.find(&name)? {
                control.set(number, setting)?;
            }
            Ok(())
        }
        Command::Dmesg(last) => show::dmesg(control, last).await,
        Command::Trace { count, cpu } => show::trace(control, count, cpu).await,
        Command::Version => show::version(control).await,
        Command::Crash(how) => {
            control
                .terminal
                .line("the control guest crashes, as it was told");
            control.terminal.flush().await;
            match how {
                Crash::Fault => crash::fault(),
                Crash::Panic => crash::panic(),
            }
        }
        Command::Shutdown(status) => {
            let status = match status {
                Exit::Status(status) => status,
                Exit::Last => u64::from(!control.succeeded.get()),
            };
            control.power(power::OFF, status).await
        }
        Command::Reboot => control.power(power::REBOOT, 0).await,
        Command::Console(_) => Ok(()),
    }
}

impl Control {
    /// Ends the machine.
    pub async fn power(&self, action: u64, status: u64) -> ! {
        self.terminal.flush().await;
        let why = self.system.power(action, status);
        loop {
            // The call returns only if the right to it is missing.
            self.terminal
                .line(&alloc::format!("error: the machine cannot be ended: {why}"));
            Timer::after(Duration::from_secs(3600)).await;
        }
    }
}

fn help(control: &Control, about: Option<&command::Entry>) {
    let Some(entry) = about else {
        for entry in COMMANDS {
            control.terminal.line(&entry.listed());
        }
        control
            .terminal
            .line("\n`help COMMAND` tells more; `help help` tells how lines are read.");
        return;
    };
    control.terminal.line(&entry.synopsis());
    control
        .terminal
        .line(&alloc::format!("  {}", entry.summary));
    for line in entry.details.lines() {
        control.terminal.line(line);
    }
}

async fn create(control: &Control, machine: &str, copies: &Copies) -> Result {
    match copies {
        Copies::One(name) => {
            let number = control.create(machine, name)?;
            control
                .terminal
                .line(&alloc::format!("{name} is domain {number}"));
        }
        Copies::Many(count) => {
            for copy in 1..=*count {
                control
                    .create(machine, &alloc::format!("{machine}-{copy}"))
                    .map_err(|why| {
                        alloc::format!(
                            "{} made, then: {why}",
                            format::counted(copy as usize - 1, "domain")
                        )
                    })?;
                // The others' consoles are served meanwhile.
                embassy_futures::yield_now().await;
            }
            control
                .terminal
                .line(&alloc::format!("{machine}-1 to {machine}-{count} are made"));
        }
    }
    Ok(())
}

/// Does something with each of the domains that some words mean. One that fails does not keep the others from it.
async fn each(control: &Control, verb: Verb, names: &[String]) -> Result {
    let mut wrong = Vec::new();
    for name in names {
        let numbers = match control.find(name) {
            Ok(numbers) => numbers,
            // Who starts what does not exist yet wants it made.
            Err(_) if verb == Verb::Start && control.number_of(name).is_none() => {
                match control.create(name, name) {
                    Ok(number) => alloc::vec![number],
                    Err(why) => {
                        wrong.push(why);
                        continue;
                    }
                }
            }
            Err(why) => {
                wrong.push(why);
                continue;
            }
        };
        for number in numbers {
            match once(control, verb, number) {
                Ok(done) => control.terminal.line(&done),
                Err(why) => wrong.push(why),
            }
            control.terminal.room().await;
            embassy_futures::yield_now().await;
        }
    }
    match wrong.pop() {
        None => Ok(()),
        Some(last) => {
            for why in wrong {
                control.terminal.line(&alloc::format!("error: {why}"));
            }
            Err(last)
        }
    }
}

fn once(control: &Control, verb: Verb, number: u32) -> crate::domains::Outcome {
    match verb {
        Verb::Start => control.start(number),
        Verb::Pause => control.pause(number),
        Verb::Resume => control.resume(number),
        Verb::Stop => control.end(number, Asked::Stop),
        Verb::Kill => control.end(number, Asked::Kill),
        Verb::Destroy => control.destroy(number),
        Verb::Restart => {
            let number = control.restart(number)?;
            Ok(alloc::format!(
                "{} runs anew, as domain {number}",
                control.name_of(number)
            ))
        }
    }
}

async fn wait(control: &Control, name: &str, limit: Option<Seconds>) -> Result {
    let number = control.find_one(name)?;
    let deadline = limit.map_or(Instant::MAX, |limit| {
        Instant::now() + Duration::from_nanos(limit.0)
    });
    let mut changes = control.changes();
    loop {
        let ending = control.with(number, |guest| {
            let ending = guest.ending?;
            Some((
                ending,
                guest
                    .config()
                    .is_none_or(|machine| machine.expect.0.matches(&ending)),
            ))
        });
        match ending {
            None => return Err(alloc::format!("`{name}` is gone")),
            Some(Some((_, true))) => return Ok(()),
            Some(Some((ending, false))) => {
                return Err(alloc::format!(
                    "`{name}` ended otherwise than expected: {ending}"
                ));
            }
            Some(None) => {}
        }
        if Instant::now() >= deadline {
            return Err(alloc::format!("`{name}` has not ended in time"));
        }
        changes.until(deadline).await;
    }
}

async fn samples_of_top(control: &Control, samples: u32) -> Result {
    let mut before = show::sample(control)?;
    for sample in 0..samples {
        Timer::after(REDRAW).await;
        let now = show::sample(control)?;
        if sample > 0 {
            control.terminal.line("");
        }
        for line in top::lines(&before, &now) {
            control.terminal.line(&line);
        }
        control.terminal.room().await;
        before = now;
    }
    Ok(())
}

/// `top` on the whole screen, until a key is typed.
async fn watch(control: &Control) -> Result {
    /// Xterm's other screen, empty, with the cursor hidden; and back.
    const ENTER: &str = "\x1b[?1049h\x1b[2J\x1b[?25l";
    const BACK: &str = "\x1b[?25h\x1b[?1049l";
    let mut before = show::sample(control)?;
    control.terminal.give_away();
    control.terminal.text(ENTER);
    let mut pause = Duration::from_millis(300);
    let result = loop {
        if with_timeout(pause, control.terminal.key()).await.is_ok() {
            break Ok(());
        }
        pause = REDRAW;
        let now = match show::sample(control) {
            Ok(now) => now,
            Err(why) => break Err(why),
        };
        let mut screen = String::from("\x1b[H");
        for line in top::lines(&before, &now) {
            screen += &line;
            screen.push_str("\x1b[K\n");
        }
        screen.push_str("\x1b[Jany key leaves");
        control.terminal.text(&screen);
        control.terminal.room().await;
        before = now;
    };
    control.terminal.text(BACK);
    control.terminal.take_back();
    result
}

/// A domain's console, until Ctrl-] is typed.
async fn console(control: &Control, name: &str) -> Result {
    let number = control.find_one(name)?;
    let name = control.name_of(number);
    control.terminal.line(&alloc::format!(
        "--- console of {name}; Ctrl-] leaves it ---"
    ));
    control.terminal.give_away();
    let start = control.with(number, |guest| guest.console.tail(BACKLOG));
    let how = select(
        show_console(control, number, start.unwrap_or(0)),
        type_into(control, number),
    )
    .await;
    control.terminal.line("");
    control.terminal.take_back();
    control.terminal.line(&match how {
        Either::First(()) => alloc::format!("--- {name} is gone ---"),
        Either::Second(()) => alloc::format!("--- left the console of {name} ---"),
    });
    Ok(())
}

/// Shows a console from a position on, until its domain is gone.
async fn show_console(control: &Control, number: u32, mut position: u64) {
    let mut plain = Plain::default();
    let mut changes = control.changes();
    let mut told = false;
    loop {
        let Some((missed, bytes, ending)) = control.with(number, |guest| {
            let (missed, bytes) = guest.console.read(position, CHUNK);
            (missed, bytes, guest.ending)
        }) else {
            return;
        };
        position += missed + bytes.len() as u64;
        let mut text = String::new();
        plain.feed(&bytes, &mut text);
        control.terminal.text(&text);
        if bytes.is_empty() {
            if let Some(ending) = ending.filter(|_| !told) {
                told = true;
                control
                    .terminal
                    .line(&alloc::format!("\n--- it has ended: {ending} ---"));
            }
            changes.until(Instant::MAX).await;
        }
        control.terminal.room().await;
    }
}

/// Types into a console, until Ctrl-] is typed.
async fn type_into(control: &Control, number: u32) {
    /// How long to wait where the domain does not read its input.
    const PAUSE: Duration = Duration::from_millis(20);
    loop {
        let byte = control.terminal.key().await;
        if byte == LEAVE {
            return;
        }
        // A domain that has ended takes nothing; neither does one that is gone.
        while control.with(number, |guest| guest.type_in(&[byte])) == Some(Ok(0)) {
            match select(control.terminal.key(), Timer::after(PAUSE)).await {
                Either::First(LEAVE) => return,
                // What does not fit is lost, as on a real line.
                Either::First(_) | Either::Second(()) => {}
            }
        }
    }
}

/// Shows what the kernel warns of, for ever.
pub async fn watch_log(control: &Control) -> ! {
    /// How often the log is looked at: nothing tells when it grows.
    const PAUSE: Duration = Duration::from_millis(500);
    let mut log = KernelLog::from_now(control.system);
    loop {
        Timer::after(PAUSE).await;
        // Without the right to read it nothing can be shown.
        for line in log
            .next_lines()
            .unwrap_or_default()
            .into_iter()
            .filter(|line| is_trouble(line))
        {
            control.terminal.notice(&line);
        }
    }
}

/// What the operator sees first.
pub fn greet(control: &Control) {
    let terminal = &control.terminal;
    let name = alloc::format!("Plinth {}, control guest", env!("CARGO_PKG_VERSION"));
    terminal.line("");
    match control.system.info() {
        Ok(system) => terminal.line(&alloc::format!(
            "{name}: {}, {} of memory free, {}",
            format::counted(system.cpus as usize, "CPU"),
            format::frames(system.free_frames),
            // Without the control guest itself.
            format::counted((system.domains as usize).saturating_sub(1), "domain"),
        )),
        Err(why) => terminal.line(&alloc::format!(
            "{name}; the machine says nothing of itself: {why}"
        )),
    }
    let machines = alloc::format!("machines: {}", format::listed(control.archive.machines()));
    terminal.line(&format::cut(&machines, 79));
    terminal.line("`help` lists the commands, Tab completes.");
}
