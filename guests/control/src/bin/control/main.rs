//! The control guest's program: it takes what the kernel gave it, finds the domains that there are, and serves the operator, or
//! the command line.

#![no_std]
#![no_main]

extern crate alloc;

mod archive;
mod cmos;
mod control;
mod crash;
mod device;
mod domains;
mod executor;
mod guest;
mod heap;
mod kernel_log;
mod key;
mod machine;
mod run;
mod serial;
mod shell;
mod show;
mod start;
mod terminal;
mod window;

use alloc::boxed::Box;

use embassy_executor::{SpawnError, Spawner};
use plinth_guest_control::batch::Options;
use plinth_rt::println;

use control::Control;
use serial::Serial;

plinth_rt::entry!(main);

fn main() -> u64 {
    let start = match start::Start::take() {
        Ok(start) => start,
        Err(why) => {
            println!("the control guest cannot work: {why}");
            return 1;
        }
    };
    start.take_precedence();
    let serial: &'static Serial = Box::leak(Box::new(start.serial()));
    let restarts = start.restarts;
    let control: &'static Control = match start.control(serial) {
        Ok(control) => Box::leak(Box::new(control)),
        Err(why) => {
            println!("the control guest cannot work: {why}");
            return 1;
        }
    };
    let failed = executor::run(
        |spawner| spawn(spawner, serial, control, restarts),
        |event| match event {
            key::SERIAL => {
                serial.interrupt();
                None
            }
            event if key::is_device(event) => domains::serve_device(control, key::number(event)),
            event => {
                control.arrived(event);
                None
            }
        },
    );
    println!("the control guest cannot work: {failed}");
    1
}

/// Starts the tasks.
fn spawn(
    spawner: Spawner,
    serial: &'static Serial,
    control: &'static Control,
    restarts: u32,
) -> Result<(), SpawnError> {
    spawner.spawn(serve(serial)?);
    spawner.spawn(watch(control)?);
    spawner.spawn(keep(control)?);
    spawner.spawn(tick(control)?);
    spawner.spawn(operate(spawner, control, restarts)?);
    Ok(())
}

#[embassy_executor::task]
async fn serve(serial: &'static Serial) {
    serial.serve().await
}

#[embassy_executor::task]
async fn watch(control: &'static Control) {
    domains::watch(control).await
}

#[embassy_executor::task]
async fn keep(control: &'static Control) {
    domains::keep(control).await
}

#[embassy_executor::task]
async fn tick(control: &'static Control) {
    domains::tick(control).await
}

#[embassy_executor::task]
async fn watch_log(control: &'static Control) {
    shell::watch_log(control).await
}

#[embassy_executor::task]
async fn operate(spawner: Spawner, control: &'static Control, restarts: u32) {
    let options = Options::parse(control.archive.text("cmdline").unwrap_or_default());
    start::find_domains(control, restarts);
    if let Some(machines) = &options.guests {
        if restarts > 0 {
            start::give_up(control, &options).await;
        }
        run::batch(control, &options, machines).await;
    }
    if let Ok(task) = watch_log(control) {
        spawner.spawn(task);
    }
    shell::greet(control);
    if restarts == 0 {
        start::autostart(control);
    }
    shell::shell(control).await
}
