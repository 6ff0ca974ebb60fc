//! The life of domains: made, started, watched, ended, restarted, taken back.

use alloc::rc::Rc;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use embassy_time::{Duration, Instant, Timer};
use plinth_devices::Power;
use plinth_guest_control::command::matches;
use plinth_guest_control::config::{Machine, OnEnd, backoff, is_good_name};
use plinth_guest_control::ending::{Cause, Ending};
use plinth_guest_control::report::{name, run_ns};
use plinth_guest_control::{format, suggest};
use plinth_rt::abi::{DomainState, Status};
use plinth_rt::object::Domain;

use crate::control::Control;
use crate::device::{Answer, Devices};
use crate::guest::{Asked, Guest, vcpu_infos, with_vcpu};
use crate::{heap, key, machine};

/// A machine that ends sooner after its start is in danger of ending again and again.
const QUICK: Duration = Duration::from_secs(10);

/// How long output that is no whole line may wait, in nanoseconds.
const TELL_LATE: u64 = 5_000_000;
/// The least time between two looks at devices, in nanoseconds: a guest may ask for interrupts at any rate.
const LEAST_TICK: u64 = 50_000;

/// What was done, in words; or why it could not be.
pub type Outcome = Result<String, String>;

impl Control {
    /// Makes a domain called `name` of a machine; its number.
    pub fn create(&self, machine_name: &str, name: &str) -> Result<u32, String> {
        let machine = self.archive.machine(machine_name)?;
        if !is_good_name(name) {
            return Err(alloc::format!(
                "`{name}` is no name for a domain: it has 1 to 32 letters, digits, `-`, `_` or `.`, and is no number"
            ));
        }
        if name == self.own_name {
            return Err(alloc::format!("`{name}` is the control guest itself"));
        }
        if let Some(number) = self.number_of(name) {
            let state = self
                .with(number, |guest| guest.domain.info())
                .and_then(Result::ok)
                .map_or("", |info| info.state.text());
            return Err(alloc::format!(
                "there is a domain called `{name}` already ({state}); `restart` it, or `create {machine_name} as ...`"
            ));
        }
        if !heap::is_ample() {
            return Err(alloc::format!(
                "the control guest has too little memory left for another domain: {}",
                format::size(heap::free() as u64)
            ));
        }
        let domain = machine::build(self, name, &machine)
            .map_err(|why| alloc::format!("`{name}` cannot be made: {why}"))?;
        self.watch(domain, Some((machine_name.into(), machine)))
            .map_err(|why| {
                // It was never started. The handle is there.
                let _ = domain.destroy();
                let _ = domain.any().close();
                alloc::format!("`{name}` cannot be watched: {why}")
            })
    }

    /// Takes a domain among those that are kept; its number.
    fn watch(&self, domain: Domain, machine: Option<(String, Rc<Machine>)>) -> Result<u32, Status> {
        let info = domain.info()?;
        let equipment = machine
            .as_ref()
            .and_then(|(_, machine)| machine::equipment(self, machine));
        // Charged to the control guest: a domain that has used up its budget is watched all the same.
        let event = self.own.create_event()?;
        let mut guest = event
            .bind(key::domain(info.number))
            .and_then(|()| Guest::new(&info, domain, event, machine))
            .inspect_err(|_| {
                let _ = event.any().close();
            })?;
        if let Some(equipment) = equipment
            && matches!(
                info.state,
                DomainState::CREATED | DomainState::RUNNING | DomainState::PAUSED
            )
        {
            let key = key::device(info.number);
            match Devices::new(
                self.own,
                &self.windows,
                domain,
                info.max_vcpus,
                key,
                &equipment,
            ) {
                Ok(devices) => guest.devices = Some(devices),
                Err(why) => {
                    let _ = event.any().close();
                    return Err(why);
                }
            }
        }
        if info.state != DomainState::CREATED {
            guest.started = Some(Instant::now());
        }
        self.guests.borrow_mut().insert(info.number, guest);
        Ok(info.number)
    }

    /// Takes over a domain that somebody else made: a control guest before this one, or another domain. If it has ended, that
    /// is not told again, but what its policy says follows.
    pub fn adopt(&self, number: u32) -> Result<(u32, DomainState), Status> {
        let domain = self.system.open_domain(number)?;
        let close = |why| {
            let _ = domain.any().close();
            why
        };
        let (info, vcpus) = vcpu_infos(domain).map_err(close)?;
        let machine = self.machine_of(&name(&info));
        let limit = machine.as_ref().and_then(|(_, machine)| machine.time_limit);
        let limited = limit.is_some_and(|limit| run_ns(&vcpus) >= limit.0);
        self.watch(domain, machine).map_err(close)?;
        let cause = limited.then_some(Cause::TimeLimit);
        let ending = Ending::of(&info, cause);
        let policy = self.with(number, |guest| {
            guest.limited = limited;
            guest.ending = ending;
            guest.runs();
            guest
                .config()
                .map_or(OnEnd::Keep, |machine| machine.on_end.0)
        });
        // Who was killed was most likely meant to stay so.
        if let Some(ending) = ending.filter(|ending| !ending.is_kill())
            && policy != Some(OnEnd::Keep)
        {
            after(self, number, &ending);
        }
        Ok((number, info.state))
    }

    /// The numbers of all domains of the machine that are not kept here, the control guest's left out.
    pub fn strangers(&self) -> Vec<u32> {
        let mut numbers = Vec::new();
        let mut last = 0;
        while let Ok(Some(number)) = self.system.next_domain(last) {
            last = number;
            if number != self.own_number && !self.guests.borrow().contains_key(&number) {
                numbers.push(number);
            }
        }
        numbers
    }

    /// Forgets the domains that others have destroyed, of which nothing tells.
    fn forget_destroyed(&self) {
        let is_destroyed = |guest: &&Guest| {
            let info = guest.domain.info();
            info.is_ok_and(|info| info.state == DomainState::DESTROYED)
        };
        let destroyed: Vec<u32> = {
            let guests = self.guests.borrow();
            guests
                .values()
                .filter(is_destroyed)
                .map(|guest| guest.number)
                .collect()
        };
        for number in destroyed {
            self.forget(number);
        }
    }

    /// The domains that a word of the operator's means, at least one.
    pub fn find(&self, pattern: &str) -> Result<Vec<u32>, String> {
        self.forget_destroyed();
        let mut found: Vec<u32> = {
            let guests = self.guests.borrow();
            let kept = guests
                .values()
                .filter(|guest| matches(pattern, &guest.name));
            kept.map(|guest| guest.number).collect()
        };
        if found.is_empty() {
            found = self.find_otherwise(pattern)?;
        }
        Ok(found)
    }

    /// Whether a word means the control guest's own domain.
    pub fn is_own(&self, pattern: &str) -> bool {
        pattern == self.own_name || pattern.parse() == Ok(self.own_number)
    }

    /// Looks for a domain by its number, and among those that others have made.
    fn find_otherwise(&self, pattern: &str) -> Result<Vec<u32>, String> {
        let number: Option<u32> = pattern.parse().ok();
        if let Some(number) = number.filter(|number| self.guests.borrow().contains_key(number)) {
            return Ok(alloc::vec![number]);
        }
        if self.is_own(pattern) {
            return Err(
                "that is the control guest itself, which `crash`, `reboot` and `shutdown` end"
                    .into(),
            );
        }
        let stranger = self
            .strangers()
            .into_iter()
            .find(|&stranger| {
                number == Some(stranger) || self.is_called(stranger, pattern) == Ok(true)
            })
            .ok_or_else(|| self.no_domain(pattern))?;
        self.adopt(stranger)
            .map(|(number, _)| alloc::vec![number])
            .map_err(|why| alloc::format!("`{pattern}` cannot be taken over: {why}"))
    }

    /// Whether the domain of this number, which is not kept here, has this name.
    fn is_called(&self, number: u32, wanted: &str) -> Result<bool, Status> {
        let domain = self.system.open_domain(number)?;
        let info = domain.info();
        domain.any().close()?;
        Ok(name(&info?) == wanted)
    }

    fn no_domain(&self, pattern: &str) -> String {
        let guests = self.guests.borrow();
        let names = || guests.values().map(|guest| guest.name.as_str());
        let mut text = alloc::format!("no domain is called `{pattern}`");
        if self.archive.machine(pattern).is_ok() {
            text += &alloc::format!("; `create {pattern}` makes one");
        } else if let Some(near) = suggest::nearest(pattern, names()) {
            text += &alloc::format!("; did you mean `{near}`?");
        } else {
            text += "; there are: ";
            text += &format::listed(names().take(20));
            if guests.len() > 20 {
                text += ", ...";
            }
        }
        text
    }

    /// The one domain that a word means.
    pub fn find_one(&self, pattern: &str) -> Result<u32, String> {
        let found = self.find(pattern)?;
        match found[..] {
            [number] => Ok(number),
            _ => Err(alloc::format!(
                "`{pattern}` means {}, and this is for one",
                format::counted(found.len(), "domain")
            )),
        }
    }

    /// The name of a domain; its number, if it is not kept here.
    pub fn name_of(&self, number: u32) -> String {
        if number == self.own_number {
            return self.own_name.clone();
        }
        self.with(number, |guest| guest.name.clone())
            .unwrap_or_else(|| number.to_string())
    }

    /// The domain's handle, and a word for an error about it.
    fn domain(&self, number: u32) -> Result<(String, Domain), String> {
        self.with(number, |guest| (guest.name.clone(), guest.domain))
            .ok_or_else(|| alloc::format!("domain {number} is gone"))
    }

    /// Makes a call on a domain. `WRONG_STATE` is told with the state, and with what would be right.
    fn change(
        &self,
        number: u32,
        done: &str,
        call: fn(Domain) -> plinth_rt::object::Result<()>,
    ) -> Outcome {
        let (name, domain) = self.domain(number)?;
        match call(domain) {
            Ok(()) => Ok(alloc::format!("{name} {done}")),
            Err(Status::WRONG_STATE) => {
                let state = domain
                    .info()
                    .map_or(DomainState::DESTROYED, |info| info.state);
                Err(alloc::format!(
                    "`{name}` {}",
                    match state {
                        DomainState::CREATED => "was not started yet; `start` starts it",
                        DomainState::RUNNING => "is running; `pause` holds it, `stop` ends it",
                        DomainState::PAUSED => "is paused; `resume` lets it go on",
                        DomainState::ENDED =>
                            "has ended; `restart` makes it anew, `destroy` takes it back",
                        _ => "is gone",
                    }
                ))
            }
            Err(why) => Err(alloc::format!("`{name}`: {why}")),
        }
    }

    /// Starts a domain.
    pub fn start(&self, number: u32) -> Outcome {
        let done = self.change(number, "runs", Domain::start)?;
        self.with(number, |guest| {
            guest.started = Some(Instant::now());
            guest.runs();
        });
        self.keeper.signal(());
        Ok(done)
    }

    /// Holds a domain.
    pub fn pause(&self, number: u32) -> Outcome {
        self.change(number, "is paused", Domain::pause)
    }

    /// Lets a domain go on.
    pub fn resume(&self, number: u32) -> Outcome {
        let done = self.change(number, "runs", Domain::resume)?;
        self.with(number, Guest::runs);
        self.keeper.signal(());
        Ok(done)
    }

    /// Ends a domain because the operator wants it.
    pub fn end(&self, number: u32, asked: Asked) -> Outcome {
        // A restart that waits is not wanted any more.
        if self.restarts.borrow_mut().remove(&number).is_some() {
            self.with(number, |guest| guest.asked = asked);
            return Ok(alloc::format!("{} is not restarted", self.name_of(number)));
        }
        if asked == Asked::Stop && self.press_power_button(number) {
            return Ok(alloc::format!(
                "{} was asked to power off; `kill` ends it at once",
                self.name_of(number)
            ));
        }
        // Before the call: the end may be seen at once.
        let before = self.with(number, |guest| core::mem::replace(&mut guest.asked, asked));
        self.change(number, "was ended", Domain::kill)
            .inspect_err(|_| {
                if let Some(before) = before {
                    self.with(number, |guest| guest.asked = before);
                }
            })
    }

    /// Presses the power button of a domain that runs and has one; whether that is so.
    fn press_power_button(&self, number: u32) -> bool {
        self.with(number, |guest| {
            let info = guest.domain.info();
            let pressed = info.is_ok_and(|info| info.state == DomainState::RUNNING)
                && guest
                    .devices
                    .as_mut()
                    .is_some_and(Devices::press_power_button);
            if pressed {
                guest.asked = Asked::Stop;
            }
            pressed
        })
        .unwrap_or(false)
    }

    /// Takes a domain back. Its console is kept for a while.
    pub fn destroy(&self, number: u32) -> Outcome {
        let done = self.change(number, "is destroyed", Domain::destroy)?;
        self.forget(number);
        Ok(done)
    }

    /// Forgets a domain that is destroyed.
    fn forget(&self, number: u32) {
        self.restarts.borrow_mut().remove(&number);
        let guest = self.guests.borrow_mut().remove(&number);
        if let Some(mut guest) = guest {
            if let Some(devices) = guest.devices.take() {
                devices.close(&self.windows);
            }
            let name = guest.name.clone();
            self.keep_console(name, guest.close());
        }
    }

    /// Ends a domain, and makes and starts it anew of its machine; the new number.
    pub fn restart(&self, number: u32) -> Result<u32, String> {
        let (name, domain) = self.domain(number)?;
        let machine = self.with(number, |guest| {
            guest.machine.as_ref().map(|(machine, _)| machine.clone())
        });
        let machine = machine
            .flatten()
            .ok_or_else(|| alloc::format!("`{name}` is of no machine of the archive"))?;
        // So that a mistake in its file does not cost the domain that there is.
        self.archive.machine(&machine)?;
        let state = domain
            .info()
            .map_or(DomainState::DESTROYED, |info| info.state);
        if matches!(state, DomainState::RUNNING | DomainState::PAUSED) {
            self.end(number, Asked::Kill)?;
        }
        self.destroy(number)?;
        let number = self.create(&machine, &name)?;
        self.start(number)?;
        Ok(number)
    }

    /// Changes how all vCPUs of a domain are scheduled.
    pub fn set(
        &self,
        number: u32,
        setting: plinth_guest_control::command::Setting,
    ) -> Result<(), String> {
        let (name, domain) = self.domain(number)?;
        let cpus = self.system.info().map_or(0, |info| info.cpus);
        let set = || {
            for index in 0..domain.info()?.vcpus {
                with_vcpu(domain, index, |vcpu| {
                    let mut schedule = vcpu.info()?.schedule;
                    setting.apply(&mut schedule);
                    vcpu.schedule(&schedule)
                })?;
            }
            Ok(())
        };
        set().map_err(|why| match why {
            Status::BAD_ARGUMENT => alloc::format!(
                "there is no such CPU; the last is {}",
                cpus.saturating_sub(1)
            ),
            Status::WRONG_STATE => alloc::format!("`{name}` has ended"),
            why => alloc::format!("`{name}`: {why}"),
        })
    }
}

/// Looks after the domains' events, for ever.
pub async fn watch(control: &Control) -> ! {
    loop {
        let event = control.next_event().await;
        let number = key::number(event);
        if look(control, number) {
            control.arrived(event);
        }
        control.changed();
        // What is runnable besides runs now: one domain that writes without end does not hold up the others.
        embassy_futures::yield_now().await;
    }
}

/// A vCPU of the domain waits for a device. Called as soon as the event is taken, outside of any task: the vCPU is to wait no longer than
/// it must.
pub fn serve_device(control: &Control, number: u32) -> Option<Answer> {
    let served = control
        .with(number, Guest::serve_devices)
        .unwrap_or_default();
    if served.ended_line {
        control.changed();
    } else if served.wrote && !control.untold.replace(true) || served.moved {
        // Whoever reads the output is told soon; a device may be due at another time.
        control.timers.signal(());
    }
    served.answer
}

/// Tells what time brings to the devices, for ever.
pub async fn tick(control: &Control) -> ! {
    loop {
        let now = Instant::now();
        let next = {
            let mut guests = control.guests.borrow_mut();
            let devices = guests.values_mut().flat_map(|guest| &mut guest.devices);
            devices.filter_map(Devices::next_event).min()
        };
        if control.untold.get() {
            // What is a part of a line is told late, so that a line costs as much as a byte.
            let late = Instant::now() + Duration::from_nanos(TELL_LATE);
            let late = next.map_or(late, |at| late.min(Instant::from_ticks(at)));
            Timer::at(late).await;
            if control.untold.replace(false) {
                control.changed();
            }
            continue;
        }
        match next {
            Some(at) => {
                // Either of both is a reason to look again.
                let at = Instant::from_ticks(at.max(now.as_ticks() + LEAST_TICK));
                let _ = embassy_time::with_deadline(at, control.timers.wait()).await;
            }
            None => control.timers.wait().await,
        }
    }
}

/// What there was to see of a domain.
enum Look {
    /// More output than was taken.
    More,
    /// Its state, and its end if that is new.
    State(DomainState, Option<Ending>),
}

/// Takes a domain's output, and sees whether it has ended; whether there is more output.
fn look(control: &Control, number: u32) -> bool {
    let seen = control.with(number, |guest| {
        // The state first: what comes before the end is there then.
        let info = guest.domain.info()?;
        if guest.take_output()? {
            return Ok(Look::More);
        }
        if guest.ending.is_some() {
            return Ok(Look::State(info.state, None));
        }
        guest.ending = Ending::of(&info, guest.cause());
        Ok(Look::State(info.state, guest.ending))
    });
    match seen {
        // It was destroyed with the event still on its way.
        None => {}
        Some(Ok(Look::More)) => return true,
        Some(Ok(Look::State(DomainState::DESTROYED, _))) => control.forget(number),
        Some(Ok(Look::State(_, None))) => {}
        Some(Ok(Look::State(_, Some(ending)))) => after(control, number, &ending),
        Some(Err(why)) => {
            let why: Status = why;
            let name = control.name_of(number);
            control
                .terminal
                .notice(&alloc::format!("{name} cannot be watched: {why}"));
        }
    }
    false
}

/// What follows a domain's end: it is told, and the policy applies.
fn after(control: &Control, number: u32, ending: &Ending) {
    let Some((name, asked, is_run, started, policy, expected)) = control.with(number, |guest| {
        let config = guest.config();
        (
            guest.name.clone(),
            guest.asked,
            guest.is_run,
            guest.started,
            config.map_or(OnEnd::Keep, |machine| {
                if guest.power == Some(Power::Reset) {
                    machine.on_reboot.0
                } else {
                    machine.on_end.0
                }
            }),
            // Who resets its machine wants it to start again.
            guest.power == Some(Power::Reset)
                || config.is_none_or(|machine| machine.expect.0.matches(ending)),
        )
    }) else {
        return;
    };
    if is_run {
        return;
    }
    let surprise = if expected || asked != Asked::No {
        ""
    } else {
        " (not expected)"
    };
    let mut text = alloc::format!("{name} ended: {ending}, rip {:#x}{surprise}", ending.rip);
    match (policy, asked) {
        (OnEnd::Restart, Asked::No) => {
            let started = started.unwrap_or(Instant::MIN);
            let quick_ends = control.with(number, |guest| {
                let is_quick = started.elapsed() < QUICK;
                guest.quick_ends = if is_quick {
                    guest.quick_ends.saturating_add(1)
                } else {
                    0
                };
                guest.quick_ends
            });
            let due = started + Duration::from_nanos(backoff(quick_ends.unwrap_or(0)).0);
            control.restarts.borrow_mut().insert(number, due);
            control.keeper.signal(());
            text += "; it is restarted";
            control.terminal.notice(&text);
        }
        (OnEnd::Destroy, Asked::No | Asked::Stop) => {
            control.terminal.notice(&text);
            if let Err(why) = control.destroy(number) {
                control.terminal.notice(&why);
            }
        }
        _ => control.terminal.notice(&text),
    }
}

/// Keeps time limits and restarts, for ever.
pub async fn keep(control: &Control) -> ! {
    loop {
        let now = Instant::now();
        let due: Vec<u32> = {
            let restarts = control.restarts.borrow();
            restarts
                .iter()
                .filter(|&(_, &at)| at <= now)
                .map(|(&number, _)| number)
                .collect()
        };
        for number in due {
            control.restarts.borrow_mut().remove(&number);
            let name = control.name_of(number);
            let quick_ends = control.with(number, |guest| guest.quick_ends);
            match control.restart(number) {
                Ok(number) => {
                    control.with(number, |guest| guest.quick_ends = quick_ends.unwrap_or(0));
                }
                Err(why) => {
                    let text = alloc::format!("{name} is not restarted: {why}");
                    control.terminal.notice(&text);
                }
            }
        }
        let restart = control.restarts.borrow().values().min().copied();
        let next = [restart, enforce_limits(control)]
            .into_iter()
            .flatten()
            .min();
        match next {
            Some(at) => {
                // Either of both is a reason to look again.
                let _ = embassy_time::with_deadline(at, control.keeper.wait()).await;
            }
            None => control.keeper.wait().await,
        }
    }
}

/// Kills the domains that have used up their time; when to look again.
fn enforce_limits(control: &Control) -> Option<Instant> {
    /// The least time between two looks at a domain, for each that has a limit. What this costs is bounded so, and as many share
    /// the CPUs, none runs much longer than this meanwhile.
    const PAUSE: Duration = Duration::from_millis(10);
    let mut guests = control.guests.borrow_mut();
    let limited = guests
        .values()
        .filter(|guest| guest.next_check.is_some())
        .count();
    let pause = PAUSE * limited as u32;
    let now = Instant::now();
    for guest in guests.values_mut() {
        if guest.next_check.is_some_and(|at| at <= now) {
            guest.next_check = check_limit(guest, pause);
        }
    }
    guests.values().filter_map(|guest| guest.next_check).min()
}

/// Kills a domain if it has used up its time; else, when to look again, at least `pause` from now.
fn check_limit(guest: &mut Guest, pause: Duration) -> Option<Instant> {
    let limit = guest.config()?.time_limit?;
    let (info, vcpus) = vcpu_infos(guest.domain).ok()?;
    // What does not run uses no time; `start` and `resume` come by here again.
    if info.state != DomainState::RUNNING {
        return None;
    }
    let left = limit.0.saturating_sub(run_ns(&vcpus));
    if left > 0 {
        let soonest = Duration::from_nanos(left / u64::from(info.vcpus.max(1)));
        return Some(Instant::now() + soonest.max(pause));
    }
    // It may have ended by itself just now.
    guest.limited = guest.domain.kill().is_ok();
    None
}
