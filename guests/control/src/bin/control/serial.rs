//! COM1. What is written waits in a queue until the transmitter takes it; nobody waits for the port.

#![allow(unsafe_code, reason = "creates the driver of COM1's ports")]

use alloc::collections::VecDeque;
use core::cell::{Cell, RefCell};

use embassy_futures::select::select;
use embassy_sync::blocking_mutex::raw::NoopRawMutex;
use embassy_sync::signal::Signal;
use embassy_time::{Duration, Timer};
use plinth_rt::object::{Event, Irq};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{FifoTriggerLevel, IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

/// As the kernel had it: 115200 baud, 8N1. Each byte that comes is told at once.
const SETTINGS: Config = Config {
    baud_rate: BaudRate::Baud115200,
    fifo_trigger_level: Some(FifoTriggerLevel::One),
    interrupts: IER::DATA_READY,
    ..Config::DEFAULT
};

/// Bytes of input that are kept for whoever reads them later.
const INPUT: usize = 4096;
/// Bytes of output above which a writer should wait.
const ROOM: usize = 8192;
/// How long a writer waits before it looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often the port is looked at where its interrupt cannot be had.
const POLL: Duration = Duration::from_millis(10);
/// How often it is looked at while output waits, should an interrupt get lost.
const WATCH: Duration = Duration::from_millis(100);

/// The serial port.
pub struct Serial {
    uart: Option<RefCell<Uart16550<PioBackend>>>,
    input: RefCell<VecDeque<u8>>,
    output: RefCell<VecDeque<u8>>,
    /// Somebody typed.
    typed: Signal<NoopRawMutex, ()>,
    /// The port's interrupt came, or there is output for it.
    wake: Signal<NoopRawMutex, ()>,
    irq: Cell<Option<Irq>>,
}

impl Serial {
    /// The port at `first`, whose ports this domain has; without one, output is lost.
    pub fn new(first: Option<u16>) -> Self {
        let uart = first.and_then(|first| {
            // SAFETY: the domain was given these ports, and nothing else in it touches them.
            let mut uart = unsafe { Uart16550::new_port(first) }.ok()?;
            uart.init(SETTINGS).ok()?;
            Some(RefCell::new(uart))
        });
        Self {
            uart,
            input: RefCell::default(),
            output: RefCell::default(),
            typed: Signal::new(),
            wake: Signal::new(),
            irq: Cell::new(None),
        }
    }

    /// Uses the interrupt, which signals `event`; whoever takes that event calls [`Self::interrupt`].
    pub fn use_interrupt(&self, irq: Irq, event: Event) {
        if irq.bind(event).is_ok() {
            self.irq.set(Some(irq));
        }
    }

    /// The interrupt came.
    pub fn interrupt(&self) {
        self.wake.signal(());
    }

    /// Serves the port, for ever.
    pub async fn serve(&self) -> ! {
        loop {
            if let Some(irq) = self.irq.get() {
                // Before the port is looked at: what comes later interrupts anew. It fails only where it was never bound.
                let _ = irq.acknowledge();
            }
            self.transfer();
            let pause = match (self.irq.get(), self.waiting()) {
                (None, _) => POLL,
                (Some(_), 1..) => WATCH,
                (Some(_), 0) => Duration::MAX,
            };
            if pause == Duration::MAX {
                self.wake.wait().await;
            } else {
                select(self.wake.wait(), Timer::after(pause)).await;
            }
        }
    }

    /// Moves bytes both ways until the port has none and takes none: its interrupt line is low then, and rises anew.
    fn transfer(&self) {
        let Some(uart) = &self.uart else {
            self.output.borrow_mut().clear();
            return;
        };
        let mut uart = uart.borrow_mut();
        loop {
            let mut bytes = [0; 16];
            let received = uart.receive_bytes(&mut bytes);
            if received > 0 {
                let mut input = self.input.borrow_mut();
                let room = INPUT.saturating_sub(input.len());
                input.extend(bytes.iter().take(received.min(room)));
                self.typed.signal(());
            }
            let mut output = self.output.borrow_mut();
            let sent = uart.send_bytes(output.as_slices().0);
            output.drain(..sent);
            if received == 0 && sent == 0 {
                break;
            }
        }
        let wanted = if self.output.borrow().is_empty() {
            IER::DATA_READY
        } else {
            IER::DATA_READY | IER::THR_EMPTY
        };
        if uart.config().interrupts != wanted {
            if wanted.contains(IER::THR_EMPTY) {
                uart.enable_interrupts(IER::THR_EMPTY);
            } else {
                uart.disable_interrupts(IER::THR_EMPTY);
            }
        }
    }

    /// Sends bytes; they may go later.
    pub fn send(&self, bytes: &[u8]) {
        let was_empty = {
            let mut output = self.output.borrow_mut();
            let was_empty = output.is_empty();
            output.extend(bytes);
            was_empty
        };
        if was_empty {
            // The task takes it from there.
            self.wake.signal(());
        }
    }

    /// Bytes that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.output.borrow().len()
    }

    /// Waits until there is room for more output. A long output calls it now and then.
    pub async fn room(&self) {
        while self.waiting() > ROOM {
            Timer::after(LOOK_AGAIN).await;
        }
    }

    /// Waits until the last byte has left the port.
    pub async fn flush(&self) {
        while self.waiting() > 0 || !self.is_idle() {
            Timer::after(LOOK_AGAIN).await;
        }
    }

    fn is_idle(&self) -> bool {
        self.uart
            .as_ref()
            .is_none_or(|uart| uart.borrow_mut().lsr().contains(LSR::TRANSMITTER_EMPTY))
    }

    /// The next byte that was typed.
    pub async fn receive(&self) -> u8 {
        loop {
            if let Some(byte) = self.input.borrow_mut().pop_front() {
                return byte;
            }
            self.typed.wait().await;
        }
    }

    /// Waits until `byte` has been typed, and forgets what was typed before it. What else is typed stays for later.
    pub async fn typed(&self, byte: u8) {
        loop {
            {
                let mut input = self.input.borrow_mut();
                if let Some(at) = input.iter().position(|&typed| typed == byte) {
                    input.drain(..=at);
                    return;
                }
            }
            self.typed.wait().await;
        }
    }
}
