//! What a vCPU does: run, wait, halt, wake, pause, resume, move, end.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use loom::thread::JoinHandle;
use plinth_abi::{DomainState, Schedule, Status};

use super::vendor::{Frame, Model};
use super::world::World;
use super::{check_within, join, machine, spawn};
use crate::mem::Ref;
use crate::object::{Domain, Ending, Stop, take_pending};
use crate::sched::Activity;
use crate::sync::spin_loop;

/// A CPU whose guests run until they are interrupted, again and again.
fn runners(world: &World, cpu: u32) -> JoinHandle<()> {
    world.start(cpu, |_, _| machine::run_guest().then_some(Stop::Pending))
}

#[test]
fn a_pause_ends_a_run_and_a_resumption_goes_on_with_it() {
    for resumes in [false, true] {
        check_within(2, move || {
            let world = World::new(1);
            let domain = world.running(1);
            let cpu = runners(&world, 0);
            domain.pause().unwrap();
            if resumes {
                domain.let_run(DomainState::PAUSED).unwrap();
            }
            world.come_to_rest(vec![cpu]);
            let activity = domain.vcpu(0).unwrap().entity.lock().activity;
            let expected = if resumes {
                Activity::Running
            } else {
                Activity::Held
            };
            assert_eq!(activity, expected);
        });
    }
}

/// An interrupt reaches a vCPU that runs, halts, or is about to.
#[test]
fn no_interrupt_is_lost() {
    for halts in [false, true] {
        check_within(2, move || {
            let world = World::new(1);
            let vcpu = world.running(1).vcpu(0).unwrap();
            let cpu = world.start(0, move |vcpu, _| {
                while let Some(vector) = vcpu.requests.highest() {
                    assert!(vcpu.requests.take(vector));
                }
                if halts {
                    return Some(Stop::Blocked(u64::MAX));
                }
                machine::run_guest().then_some(Stop::Pending)
            });
            let also = vcpu.clone();
            let other = spawn(move || also.interrupt(0x30));
            vcpu.interrupt(0x31);
            join(other);
            world.come_to_rest(vec![cpu]);
            assert_eq!(vcpu.requests.highest(), None);
        });
    }
}

#[test]
fn an_end_is_final() {
    check_within(2, || {
        let world = World::new(1);
        let domain = world.running(1);
        let vcpu = domain.vcpu(0).unwrap();
        let cpu = runners(&world, 0);
        let also = domain.clone();
        let other = spawn(move || {
            let _ = also.pause();
            let _ = also.let_run(DomainState::PAUSED);
        });
        domain.end(Ending::Killed, 0, 0).unwrap();
        vcpu.wake();
        join(other);
        world.come_to_rest(vec![cpu]);
        assert_eq!(vcpu.entity.lock().activity, Activity::Over);
        let life = domain.life.lock();
        assert_eq!((life.state, life.alive), (DomainState::ENDED, 0));
    });
}

/// A domain ends once, whoever makes it end: one of its vCPUs, or somebody else.
#[test]
fn a_domain_ends_once() {
    check_within(2, || {
        let world = World::new(1);
        let domain = world.running(1);
        let cpu = world.start(0, |_, _| Some(Stop::Ended));
        let also = domain.clone();
        let kills = |domain: &Ref<Domain<Model>>| domain.end(Ending::Killed, 0, 0).is_ok();
        let other = spawn(move || kills(&also));
        let killed = u32::from(kills(&domain)) + u32::from(join(other));
        world.come_to_rest(vec![cpu]);
        let life = domain.life.lock();
        assert_eq!((life.state, life.alive), (DomainState::ENDED, 0));
        let by_itself = matches!(life.ending, Some((Ending::Status(0), 0, 0)));
        assert_eq!(killed + u32::from(by_itself), 1);
    });
}

/// A domain all of whose vCPUs have halted for good ends; not one of which an interrupt wakes a vCPU.
#[test]
fn a_domain_that_has_halted_ends() {
    check_within(2, || {
        let world = World::new(2);
        let domain = world.running(2);
        let halts = |world: &World, cpu| world.start(cpu, |_, _| Some(Stop::Halted));
        let cpus = vec![halts(&world, 0), halts(&world, 1)];
        world.come_to_rest(cpus);
        assert_eq!(domain.state(), DomainState::ENDED);
    });
}

/// A domain that runs, whose two vCPUs wait for CPU 0, and may go to any.
fn crowded(world: &World) -> Ref<Domain<Model>> {
    let domain = world.domain(2);
    let schedule = |cpu| {
        for vcpu in &domain.life.lock().vcpus {
            let schedule = Schedule {
                cpu,
                ..Schedule::USUAL
            };
            world.kernel.sched.set_schedule(vcpu, &schedule).unwrap();
        }
    };
    schedule(0);
    domain.let_run(DomainState::CREATED).unwrap();
    schedule(Schedule::ANY_CPU);
    domain
}

/// A CPU without work takes a vCPU from another, while that takes it as well, and while it is held, pinned, or ended.
#[test]
fn whoever_takes_a_vcpu_has_it_alone() {
    for change in 0..3 {
        check_within(2, move || {
            let world = World::new(2);
            let domain = crowded(&world);
            let cpus = vec![runners(&world, 0), runners(&world, 1)];
            let vcpu = domain.vcpu(1).unwrap();
            let sched = &world.kernel.sched;
            match change {
                0 => sched.hold(&vcpu),
                1 => {
                    let pinned = Schedule {
                        cpu: 0,
                        ..Schedule::USUAL
                    };
                    sched.set_schedule(&vcpu, &pinned).unwrap();
                }
                _ => domain.end(Ending::Killed, 0, 0).unwrap(),
            }
            world.come_to_rest(cpus);
        });
    }
}

/// Who is woken gets the CPU of one that never leaves it by itself. One that was told before it blocked takes turns.
#[test]
fn who_is_woken_gets_a_cpu() {
    check_within(2, || {
        let world = World::new(1);
        let domain = world.running(2);
        let cpu = world.start(0, |vcpu, _| {
            if vcpu.index != 0 {
                return machine::run_guest().then_some(Stop::Pending);
            }
            vcpu.requests.take(0x30);
            Some(Stop::Blocked(u64::MAX))
        });
        let vcpu = domain.vcpu(0).unwrap();
        vcpu.interrupt(0x30);
        world.come_to_rest(vec![cpu]);
        let activity = vcpu.entity.lock().activity;
        let taken = vcpu.requests.highest().is_none();
        assert!(taken || activity == Activity::Ready, "{activity:?}");
    });
}

/// One vCPU passes its CPU to another, which is at rest, about to be, or on another CPU.
#[test]
fn who_a_cpu_is_passed_to_runs() {
    check_within(1, || {
        let world = World::new(2);
        let domain = world.running(2);
        let event = world.event();
        let second = domain.vcpu(1).unwrap();
        event.bind(&second, 7).unwrap();
        let got = Arc::new(Mutex::new(Vec::new()));
        let start = |cpu| {
            let (event, got) = (event.clone(), got.clone());
            world.start(cpu, move |vcpu, _| {
                if vcpu.index == 0 {
                    event.signal_and_pass();
                } else {
                    got.lock().unwrap().extend(take_pending(vcpu));
                }
                Some(Stop::Blocked(u64::MAX))
            })
        };
        let cpus = vec![start(0), start(1)];
        world.come_to_rest(cpus);
        assert_eq!(*got.lock().unwrap(), [7]);
    });
}

/// The CPU that one vCPU passes to another is not lost where that is held, pinned elsewhere, or ended meanwhile.
#[test]
fn who_a_cpu_is_passed_to_may_have_to_leave_it() {
    for change in 0..3 {
        check_within(2, move || {
            let world = World::new(1);
            let domain = world.running(2);
            let second = domain.vcpu(1).unwrap();
            let event = world.event();
            event.bind(&second, 7).unwrap();
            let (mut is_first, mut runs) = (true, false);
            let cpu = world.start(0, move |vcpu, _| {
                if vcpu.index == 0 {
                    // The other has its turn first, and waits then.
                    if core::mem::take(&mut is_first) {
                        return Some(Stop::Yielded);
                    }
                    event.signal_and_pass();
                } else {
                    runs |= take_pending(vcpu).is_some();
                    if runs {
                        return machine::run_guest().then_some(Stop::Pending);
                    }
                }
                Some(Stop::Blocked(u64::MAX))
            });
            match change {
                0 => world.kernel.sched.hold(&second),
                1 => domain.pause().unwrap(),
                _ => domain.end(Ending::Killed, 0, 0).unwrap(),
            }
            world.come_to_rest(vec![cpu]);
            let activity = second.entity.lock().activity;
            assert_ne!(activity, Activity::Running);
            assert_eq!(activity == Activity::Over, change == 2);
        });
    }
}

/// Registers are read and written while no CPU has them, whoever runs the vCPU before and after.
#[test]
fn at_rest_means_that_no_cpu_has_it() {
    check_within(3, || {
        let world = World::new(1);
        let domain = world.running(1);
        let registers = Arc::new(Frame::default());
        let also = registers.clone();
        let mut turns = 2;
        let cpu = world.start(0, move |_, _| {
            also.change();
            turns -= 1;
            Some(if turns > 0 {
                Stop::Yielded
            } else {
                Stop::Blocked(u64::MAX)
            })
        });
        let vcpu = domain.vcpu(0).unwrap();
        let look = || {
            vcpu.at_rest().map(|context| {
                registers.change();
                drop(context);
            })
        };
        let _ = look();
        let _ = look();
        world.come_to_rest(vec![cpu]);
        assert!(look().is_ok());
    });
}

/// A domain is taken apart when none of its vCPUs runs any more.
#[test]
fn what_runs_is_not_taken_apart() {
    check_within(2, || {
        let world = World::new(1);
        let domain = world.running(1);
        let registers = Arc::new(Frame::default());
        let also = registers.clone();
        let cpu = world.start(0, move |_, _| {
            also.change();
            machine::run_guest().then_some(Stop::Pending)
        });
        domain.end(Ending::Killed, 0, 0).unwrap();
        loop {
            match domain.destroy_step() {
                Ok(true) => break,
                Ok(false) => {}
                Err(why) => {
                    assert_eq!(why, Status::AGAIN);
                    spin_loop();
                }
            }
        }
        registers.change();
        world.come_to_rest(vec![cpu]);
    });
}

/// A wait with a deadline ends by whatever comes first, and the deadline ends no later one.
#[test]
fn a_deadline_and_a_wake_up_end_one_wait() {
    for at_once in [false, true] {
        check_within(2, move || {
            let world = World::new(1);
            let vcpu = world.running(1).vcpu(0).unwrap();
            let turns = Arc::new(AtomicU32::new(0));
            let counts = turns.clone();
            let cpu = world.start(0, move |_, _| {
                let is_first = counts.fetch_add(1, Relaxed) == 0;
                Some(Stop::Blocked(if is_first { 1000 } else { u64::MAX }))
            });
            let expire = || {
                machine::pass(2000);
                machine::tick(machine::cpus()[0]);
            };
            let timer = at_once.then(|| spawn(expire));
            vcpu.wake();
            match timer {
                Some(timer) => join(timer),
                None => expire(),
            }
            world.come_to_rest(vec![cpu]);
            assert_eq!(vcpu.entity.lock().activity, Activity::Blocked);
            let most = if at_once { 3 } else { 2 };
            assert!((1..=most).contains(&turns.load(Relaxed)));
        });
    }
}
