//! What must be undone when this program ends, however it ends: children, private directories, the terminal's mode.
//!
//! A normal return, a signal and a panic all come through [`clean_up`]. Against SIGKILL, children carry a parent-death
//! signal of their own. This module must never block: it runs inside the panic hook.

#![allow(
    unsafe_code,
    reason = "Command::pre_exec, which asks the system to end a child together with this program"
)]

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, TryLockError};

use anyhow::Context;
use rustix::process::{
    Pid, Signal, kill_process, kill_process_group, set_parent_process_death_signal,
};
use rustix::termios::{OptionalActions, Termios, tcsetattr};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Everything that has to be undone.
struct Debts {
    children: BTreeSet<i32>,
    directories: BTreeSet<PathBuf>,
    terminal: Option<Termios>,
}

static DEBTS: Mutex<Debts> = Mutex::new(Debts {
    children: BTreeSet::new(),
    directories: BTreeSet::new(),
    terminal: None,
});

fn debts() -> MutexGuard<'static, Debts> {
    DEBTS
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Sets up the signal thread and the panic hook. Call once, first.
pub fn install() -> anyhow::Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot watch for signals")?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            clean_up();
            // The shell's convention for a program ended by a signal.
            std::process::exit(128 + signal);
        }
    });
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Only the terminal and the children: the test profile catches panics and goes on.
        if !cfg!(test) {
            clean_up();
        }
        earlier(panic);
    }));
    Ok(())
}

/// Undoes everything that is still owed. Safe to call more than once.
pub fn clean_up() {
    let mut debts = match DEBTS.try_lock() {
        Ok(debts) => debts,
        Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
        // A panic while the lock is held by this very thread: the children have their parent-death signal.
        Err(TryLockError::WouldBlock) => return,
    };
    if let Some(mode) = debts.terminal.take() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &mode);
    }
    for pid in std::mem::take(&mut debts.children) {
        if let Some(pid) = Pid::from_raw(pid) {
            // A child that leads a group of its own takes its helpers with it.
            if kill_process_group(pid, Signal::KILL).is_err() {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
    for directory in std::mem::take(&mut debts.directories) {
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// Makes a child get SIGKILL when the thread that starts it ends, and lets it lead a process group of its own, so that
/// Ctrl-C at the terminal reaches only this program, which then ends the child in order.
///
/// The thread that spawns the command must live as long as the child is wanted.
pub fn bind(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: the closure runs between fork and exec. It calls only prctl(2), which is async-signal-safe, and
    // allocates nothing.
    unsafe {
        command.pre_exec(|| {
            set_parent_process_death_signal(Some(Signal::KILL)).map_err(io::Error::from)
        });
    }
    command
}

/// A running child that is killed when this value is dropped or the program ends.
#[derive(Debug)]
pub struct Child(std::process::Child);

impl Child {
    /// Starts a command, bound to this thread and program.
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let mut debts = debts();
        let child = bind(command).spawn()?;
        debts.children.insert(child.id() as i32);
        Ok(Self(child))
    }

    /// The process underneath, for its pipes.
    pub fn pipes(&mut self) -> &mut std::process::Child {
        &mut self.0
    }

    /// The exit status, if the child has ended.
    pub fn ended(&mut self) -> io::Result<Option<std::process::ExitStatus>> {
        let mut debts = debts();
        let status = self.0.try_wait()?;
        if status.is_some() {
            debts.children.remove(&(self.0.id() as i32));
        }
        Ok(status)
    }

    /// Kills the child and its process group, and waits for the child.
    pub fn kill(&mut self) {
        if let Ok(Some(_)) = self.ended() {
            return;
        }
        let id = self.0.id() as i32;
        if let Some(pid) = Pid::from_raw(id) {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
        debts().children.remove(&id);
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A private directory that vanishes when this value is dropped or the program ends.
#[derive(Debug)]
pub struct PrivateDirectory(PathBuf);

impl PrivateDirectory {
    /// Makes a directory under `parent`, whose name holds this process's number, and removes those that dead processes
    /// left behind there.
    pub fn new(parent: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(parent)?;
        remove_orphans(parent);
        let mut debts = debts();
        let path = tempfile::Builder::new()
            .prefix(&format!("{}-", std::process::id()))
            .tempdir_in(parent)?
            .keep();
        debts.directories.insert(path.clone());
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PrivateDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
        debts().directories.remove(&self.0);
    }
}

/// Removes the private directories whose process no longer exists.
fn remove_orphans(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.split_once('-'))
            .and_then(|(pid, _)| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Remembers the terminal's mode, to be set again at the end.
pub fn owe_terminal(mode: Termios) {
    debts().terminal = Some(mode);
}

/// Sets the terminal's remembered mode.
pub fn restore_terminal() {
    if let Some(mode) = debts().terminal.take() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &mode);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_dropped_child_is_dead() {
        let mut child = Child::start(Command::new("sleep").arg("60")).unwrap();
        let pid = child.pipes().id();
        assert!(child.ended().unwrap().is_none());
        drop(child);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_child_ends_with_the_thread_that_started_it() {
        // Leaking the guard leaves the parent-death signal as the only thing that can end the child.
        let mut child = std::thread::spawn(|| {
            let mut command = Command::new("sleep");
            bind(command.arg("60")).spawn().unwrap()
        })
        .join()
        .unwrap();
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(
                start.elapsed() < Duration::from_secs(10),
                "the child still runs"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn private_directories_come_and_go() {
        let parent = tempfile::tempdir().unwrap();
        // No process has this number: it is above the largest that Linux gives out.
        let orphan = parent.path().join("4194305-abc");
        std::fs::create_dir(&orphan).unwrap();
        let other = parent.path().join("notes");
        std::fs::create_dir(&other).unwrap();
        let first = PrivateDirectory::new(parent.path()).unwrap();
        let second = PrivateDirectory::new(parent.path()).unwrap();
        assert_ne!(first.path(), second.path());
        assert!(first.path().is_dir() && other.is_dir() && !orphan.exists());
        let path = first.path().to_path_buf();
        drop(first);
        assert!(!path.exists() && second.path().is_dir());
    }
}
