//! Long work: commands that run for a while, and their progress, a spinner when standard error is a terminal, plain lines otherwise.

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::guard::Child;

/// One piece of work that is going on. Dropping it without [`Step::done`] removes the spinner silently.
#[derive(Debug)]
pub struct Step {
    what: String,
    start: Instant,
    bar: Option<ProgressBar>,
}

impl Step {
    /// Announces the work.
    pub fn start(what: impl Into<String>) -> Self {
        let what = what.into();
        let bar = if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let bar = ProgressBar::new_spinner()
                .with_style(style)
                .with_prefix(what.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            Some(bar)
        } else {
            eprintln!("{what} ...");
            None
        };
        Self {
            what,
            start: Instant::now(),
            bar,
        }
    }

    /// Shows a detail of what happens right now; only a terminal gets it.
    pub fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(text.trim().to_owned());
        }
    }

    /// Ends the work with the time it took.
    pub fn done(self, result: &str) {
        let seconds = self.start.elapsed().as_secs_f32();
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        eprintln!("{}: {result} ({seconds:.1} s)", self.what);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Why a command did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("cannot start {program}: {source}\n  try: install it, or put it on PATH")]
    Start {
        /// The program.
        program: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It ended with a failure.
    #[error("{program} failed ({status})\n{output}\n  try: run it by hand: {line}")]
    Failed {
        /// The program.
        program: String,
        /// The whole command line.
        line: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        output: String,
    },
    /// It took too long.
    #[error(
        "{program} took longer than {seconds} s and was ended\n  try: look at the network, then run this again"
    )]
    Slow {
        /// The program.
        program: String,
        /// The limit.
        seconds: u64,
    },
}

/// How a command ended, and what it printed.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// Both, as they came.
    pub all: String,
}

/// Runs a command without input, shows what it does as details of `step`, and returns its standard output. A failing
/// command is an error with all that it printed.
pub fn run(
    command: &mut Command,
    step: &Step,
    limit: Option<Duration>,
) -> Result<String, CommandError> {
    let output = capture(command, step, limit)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let text = output
        .all
        .trim_end()
        .lines()
        .map(|line| format!("  | {line}"))
        .collect::<Vec<_>>()
        .join("\n");
    let program = command.get_program().to_string_lossy().into_owned();
    Err(CommandError::Failed {
        program,
        line: show(command),
        status: output.status,
        output: text,
    })
}

/// Runs a command without input and shows what it does as details of `step`. How it ends is for the caller to judge.
pub fn capture(
    command: &mut Command,
    step: &Step,
    limit: Option<Duration>,
) -> Result<Output, CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let cannot = |source| CommandError::Start {
        program: program.clone(),
        source,
    };
    let mut child = Child::start(command).map_err(cannot)?;
    let (sender, lines) = mpsc::channel();
    if let Some(stdout) = child.pipes().stdout.take() {
        forward(stdout, true, sender.clone());
    }
    if let Some(stderr) = child.pipes().stderr.take() {
        forward(stderr, false, sender);
    }
    let start = Instant::now();
    let (mut stdout, mut stderr, mut all) = (String::new(), String::new(), String::new());
    let status = loop {
        match lines.recv_timeout(Duration::from_millis(50)) {
            Ok((is_stdout, text)) => {
                step.detail(&text);
                all.push_str(&text);
                if is_stdout { &mut stdout } else { &mut stderr }.push_str(&text);
            }
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            // Both pipes are closed: what is left is the exit status.
            Err(mpsc::RecvTimeoutError::Disconnected) => {
                if let Some(status) = child.ended().map_err(cannot)? {
                    break status;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        if let Some(limit) = limit
            && start.elapsed() > limit
        {
            return Err(CommandError::Slow {
                program,
                seconds: limit.as_secs(),
            });
        }
    };
    Ok(Output {
        status,
        stdout,
        stderr,
        all,
    })
}

/// Sends the lines of a pipe on, with a mark whether they are standard output.
fn forward(pipe: impl Read + Send + 'static, is_stdout: bool, lines: mpsc::Sender<(bool, String)>) {
    std::thread::spawn(move || {
        let mut pipe = BufReader::new(pipe);
        let mut line = Vec::new();
        while pipe
            .read_until(b'\n', &mut line)
            .is_ok_and(|count| count > 0)
        {
            if lines
                .send((is_stdout, String::from_utf8_lossy(&line).into_owned()))
                .is_err()
            {
                break;
            }
            line.clear();
        }
    });
}

/// A command as one would type it.
pub fn show(command: &Command) -> String {
    let quote = |text: &std::ffi::OsStr| {
        let text = text.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
        if !text.is_empty() && text.chars().all(plain) {
            text.into_owned()
        } else {
            format!("'{text}'")
        }
    };
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(quote)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_output_of_a_command_comes_back() {
        let step = Step::start("test");
        assert_eq!(
            run(&mut shell("echo out; echo err >&2"), &step, None).unwrap(),
            "out\n"
        );
    }

    #[test]
    fn a_failure_tells_both_outputs() {
        let error = run(
            &mut shell("echo out; echo err >&2; exit 3"),
            &Step::start("test"),
            None,
        )
        .unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("| out") && text.contains("| err") && text.contains("try:"),
            "{text}"
        );
    }

    #[test]
    fn a_slow_command_is_ended() {
        let start = Instant::now();
        let limit = Some(Duration::from_millis(200));
        let error = run(&mut shell("sleep 60"), &Step::start("test"), limit).unwrap_err();
        assert!(matches!(error, CommandError::Slow { .. }));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn command_lines_are_quoted() {
        assert_eq!(
            show(Command::new("a").args(["b=1", "c d", ""])),
            "a b=1 'c d' ''"
        );
    }
}
