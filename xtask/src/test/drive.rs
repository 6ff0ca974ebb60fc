//! Runs a scenario on a machine and keeps what it says.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::time::{Duration, Instant};

use anyhow::Context;

use super::TestResult;
use super::disturb::{self, Disturber};
use super::judge::{Ending, judge};
use super::scenarios::Scenario;
use crate::compile::Build;
use crate::image;
use crate::linux;
use crate::machine::{Equipment, Event, Kind, Machine, Site};
use crate::progress::Step;
use crate::provision::packages::Tools;
use crate::script::Script;
use crate::serial::{self, Lines, Report};
use crate::workspace::Workspace;

/// How long a machine may take to go off after its last word.
const GRACE: Duration = Duration::from_secs(3);
/// How many of a failed machine's last lines are shown.
const SHOWN: usize = 30;
/// A machine that writes more than this is taken for one that hangs.
const MOST_OUTPUT: usize = 64 << 20;

/// Boots the scenario, waits for its end and judges it. Of `linux` it takes what it names.
pub fn run(
    workspace: &Workspace,
    build: &Build,
    linux: &[linux::Machine],
    tools: &Tools,
    kind: Kind,
    scenario: &Scenario,
) -> anyhow::Result<Vec<TestResult>> {
    let name = format!("{kind}/{}", scenario.name);
    let step = Step::start(format!("machine test {name}"));
    let site = Site::new(&workspace.machines())?;
    // All guests are those that are built: Linux comes where it is named.
    let named = |machine: &&linux::Machine| {
        let names = scenario.guests.unwrap_or_default();
        names.contains(&machine.name)
    };
    let linux = linux
        .iter()
        .filter(named)
        .map(|machine| machine.with(&scenario.linux()))
        .collect::<Result<Vec<_>, _>>()?;
    image::write(
        &site.disk(),
        build,
        scenario.command_line,
        scenario.guests,
        &linux,
    )?;
    let equipment = Equipment {
        kind,
        smp: scenario.smp,
        threads: scenario.threads,
        memory: scenario.memory.min(kind.most_memory()),
        display: false,
        gdb: None,
        instruction_ns: scenario.instruction_ns,
        recorded: false,
        predictions: scenario.predictions,
    };
    let logs = workspace.target.join("test-logs");
    let log = logs.join(format!("{kind}-{}.log", scenario.name));
    fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut machine = Machine::start(site, &equipment, tools)?;
    let mut script = Script::new(scenario.script);
    let mut disturber = None;
    let (lines, ending) = watch(
        &mut machine,
        &mut script,
        Duration::from_secs(scenario.timeout),
        BufWriter::new(file),
        |machine, line| {
            step.detail(line);
            if let Some(what) = scenario.disturbance
                && disturber.is_none()
                && line.contains(disturb::BEGINNING)
            {
                disturber = Some(Disturber::start(what, machine));
            }
        },
    );
    machine.kill();
    if scenario.disturbance.is_some() {
        let disturber = disturber.context("the machine has not begun to work")??;
        step.detail(&format!("disturbed {} times", disturber.finish()?));
    }
    let results = judge(&name, scenario, &lines, ending);
    let failures = results
        .iter()
        .filter(|result| result.failure.is_some())
        .count();
    if failures == 0 {
        step.done(&format!("{} passed", results.len()));
        return Ok(results);
    }
    step.done(&format!("{failures} FAILED, see {}", log.display()));
    if let Some(wish) = script.wish() {
        eprintln!("the script of {name} still waited for {wish}");
    }
    if !matches!(ending, Ending::Status(_)) {
        eprintln!("the last lines of {name}:");
        for line in lines.iter().skip(lines.len().saturating_sub(SHOWN)) {
            eprintln!("  | {line}");
        }
    }
    if ending == Ending::Died {
        eprintln!("the emulator's last messages:");
        for line in machine.messages(SHOWN) {
            eprintln!("  | {line}");
        }
    }
    Ok(results)
}

/// Listens to a machine until its end, and types what the script says; the machine's lines, and how it ended.
pub fn watch(
    machine: &mut Machine,
    script: &mut Script<'_>,
    limit: Duration,
    mut log: impl Write,
    mut detail: impl FnMut(&Machine, &str),
) -> (Vec<String>, Ending) {
    let start = Instant::now();
    let (mut lines, mut all, mut count) = (Lines::default(), Vec::new(), 0_usize);
    let (mut last_word, mut off): (Option<(u32, Instant)>, _) = (None, false);
    loop {
        match machine.next(Duration::from_millis(100)) {
            Event::Output(bytes) => {
                count = count.saturating_add(bytes.len());
                for line in lines.push(&bytes) {
                    // A log that cannot be written is no reason to fail the machine.
                    let _ = writeln!(log, "{line}");
                    detail(machine, &line);
                    if let Some(Report::End(status)) = serial::parse(&line) {
                        last_word.get_or_insert((status, Instant::now()));
                    }
                    all.push(line);
                }
                machine.write(&script.answer(&bytes));
            }
            Event::Idle => {}
            Event::Ended => {
                off = true;
                break;
            }
        }
        let hangs = start.elapsed() > limit || count > MOST_OUTPUT;
        if hangs || last_word.is_some_and(|(_, when)| when.elapsed() > GRACE) {
            break;
        }
    }
    let rest = lines.finish();
    if !rest.is_empty() {
        let _ = writeln!(log, "{rest}");
        all.push(rest);
    }
    let _ = log.flush();
    let ending = match last_word {
        Some((status, _)) => Ending::Status(status),
        None if off => Ending::Died,
        None => Ending::Killed,
    };
    (all, ending)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::script::Step;
    use std::process::Command;

    /// Watches a shell script as if it were a machine.
    fn watched(script: &str, limit: Duration) -> (Vec<String>, Ending, String) {
        let parent = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let mut machine =
            Machine::pretend(Site::new(parent.path()).unwrap(), &mut command).unwrap();
        let mut log = Vec::new();
        let mut script = Script::new(&[Step::Type("a")]);
        let (lines, ending) = watch(&mut machine, &mut script, limit, &mut log, |_, _| {});
        (lines, ending, String::from_utf8(log).unwrap())
    }

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_good_run_ends_with_its_status() {
        let (lines, ending, log) = watched("echo a; echo plinth: machine ends, status 0", LONG);
        assert_eq!(ending, Ending::Status(0));
        assert_eq!(lines, ["a", "plinth: machine ends, status 0"]);
        assert_eq!(log, "a\nplinth: machine ends, status 0\n");
    }

    #[test]
    fn a_machine_that_stays_on_after_its_end_is_switched_off() {
        let start = Instant::now();
        let (_, ending, _) = watched("echo plinth: machine ends, status 3; sleep 60", LONG);
        assert_eq!(ending, Ending::Status(3));
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_hanging_machine_is_killed_and_its_last_words_are_kept() {
        let (lines, ending, _) =
            watched("echo a; printf half; sleep 60", Duration::from_millis(500));
        assert_eq!(
            (lines.as_slice(), ending),
            (
                ["a".to_owned(), "half".to_owned()].as_slice(),
                Ending::Killed
            )
        );
    }

    #[test]
    fn a_script_is_typed() {
        let script =
            "printf 'plinth> '; head -c 2 | od -An -c; echo plinth: machine ends, status 0";
        let (lines, ending, _) = watched(script, LONG);
        assert_eq!(ending, Ending::Status(0));
        assert_eq!(lines[0], "plinth>    a  \\r");
    }

    #[test]
    fn a_machine_that_goes_off_silently_died() {
        let (_, ending, _) = watched("echo a; exit 1", LONG);
        assert_eq!(ending, Ending::Died);
    }
}
