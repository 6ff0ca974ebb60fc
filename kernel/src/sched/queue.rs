//! The queue of one CPU: who is ready, in which order, and who waits for a time.

use alloc::collections::VecDeque;

use plinth_abi::Status;

use super::timers::{Timers, Waiter};

/// A place in a queue.
#[derive(Debug)]
pub struct Place<T> {
    /// Who has it.
    pub vcpu: T,
    /// The vCPU's ticket; another one means that the place is out of date.
    pub ticket: u32,
    /// Its weight, which is part of the CPU's load.
    pub weight: u64,
    /// It must not go to another CPU.
    pub pinned: bool,
}

/// Where in the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Position {
    /// Before all others: it has just been woken, and has credit left.
    Boosted,
    /// Before those that have not been woken: its turn was interrupted.
    Front,
    /// Behind all others.
    Back,
}

/// A CPU's queue. Adding and taking the next one take constant time.
#[derive(Debug)]
pub struct Queue<T> {
    /// The first of the woken, if nobody was woken before: most often there is one at a time.
    first: Option<Place<T>>,
    boosted: VecDeque<Place<T>>,
    ready: VecDeque<Place<T>>,
    /// Who waits for a time.
    pub timers: Timers<T>,
    /// The sum of the weights of those that are ready.
    weight: u64,
}

impl<T: Waiter + PartialEq> Queue<T> {
    /// Nobody.
    pub const fn new() -> Self {
        Self {
            first: None,
            boosted: VecDeque::new(),
            ready: VecDeque::new(),
            timers: Timers::new(),
            weight: 0,
        }
    }

    /// Makes room for `count` vCPUs in all.
    ///
    /// # Errors
    /// `NO_MEMORY`.
    pub fn reserve(&mut self, count: usize) -> Result<(), Status> {
        let (boosted, ready) = (self.boosted.len(), self.ready.len());
        self.boosted
            .try_reserve(count.saturating_sub(boosted))
            .and_then(|()| self.ready.try_reserve(count.saturating_sub(ready)))
            .and_then(|()| self.timers.reserve(count))
            .map_err(|_| Status::NO_MEMORY)
    }

    /// Adds one. There is room: [`Queue::reserve`] made it.
    #[inline]
    pub fn add(&mut self, place: Place<T>, position: Position) {
        self.weight += place.weight;
        match position {
            Position::Boosted if !self.has_boosted() => self.first = Some(place),
            Position::Boosted => self.boosted.push_back(place),
            Position::Front => self.ready.push_front(place),
            Position::Back => self.ready.push_back(place),
        }
    }

    /// Takes the next one.
    pub fn next(&mut self) -> Option<Place<T>> {
        let place = self
            .first
            .take()
            .or_else(|| self.boosted.pop_front())
            .or_else(|| self.ready.pop_front())?;
        self.weight -= place.weight;
        Some(place)
    }

    /// Takes one that may run on another CPU, whoever would have to wait longest first.
    pub fn give_away(&mut self) -> Option<Place<T>> {
        let at = self.ready.iter().rposition(|place| !place.pinned);
        let place = match at {
            Some(at) => self.ready.remove(at),
            None => self.first.take_if(|place| !place.pinned).or_else(|| {
                let at = self.boosted.iter().position(|place| !place.pinned)?;
                self.boosted.remove(at)
            }),
        }?;
        self.weight -= place.weight;
        Some(place)
    }

    /// Takes out a vCPU, wherever it is.
    pub fn remove(&mut self, vcpu: &T) {
        if let Some(place) = self.first.take_if(|place| place.vcpu == *vcpu) {
            self.weight -= place.weight;
        }
        for list in [&mut self.boosted, &mut self.ready] {
            if let Some(at) = list.iter().position(|place| place.vcpu == *vcpu)
                && let Some(place) = list.remove(at)
            {
                self.weight -= place.weight;
            }
        }
    }

    /// Whether somebody has been woken and should run at once.
    pub fn has_boosted(&self) -> bool {
        self.first.is_some() || !self.boosted.is_empty()
    }

    /// Whether nobody is ready.
    pub fn is_empty(&self) -> bool {
        !self.has_boosted() && self.ready.is_empty()
    }

    /// The sum of the weights of those that are ready.
    pub const fn weight(&self) -> u64 {
        self.weight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq)]
    struct Number(u32);

    impl Waiter for Number {
        fn place(&self) -> usize {
            super::super::NOWHERE
        }

        fn set_place(&self, _: usize) {}
    }

    fn place(number: u32, pinned: bool) -> Place<Number> {
        Place {
            vcpu: Number(number),
            ticket: 0,
            weight: u64::from(number),
            pinned,
        }
    }

    fn queue(places: &[(u32, bool, Position)]) -> Queue<Number> {
        let mut queue = Queue::new();
        queue.reserve(places.len()).unwrap();
        for &(number, pinned, position) in places {
            queue.add(place(number, pinned), position);
        }
        queue
    }

    #[test]
    fn the_woken_come_first_then_the_interrupted() {
        let mut queue = queue(&[
            (1, false, Position::Back),
            (2, false, Position::Boosted),
            (3, false, Position::Front),
            (4, false, Position::Boosted),
            (5, false, Position::Back),
        ]);
        assert_eq!(queue.weight(), 15);
        let order: Vec<_> = core::iter::from_fn(|| queue.next())
            .map(|place| place.vcpu.0)
            .collect();
        assert_eq!(order, [2, 4, 3, 1, 5]);
        assert_eq!(queue.weight(), 0);
    }

    #[test]
    fn the_pinned_stay() {
        let mut queue = queue(&[
            (1, false, Position::Back),
            (2, true, Position::Back),
            (3, true, Position::Boosted),
            (4, false, Position::Boosted),
        ]);
        let given: Vec<_> = core::iter::from_fn(|| queue.give_away())
            .map(|place| place.vcpu.0)
            .collect();
        assert_eq!(given, [1, 4]);
        assert_eq!(queue.weight(), 5);
    }

    #[test]
    fn anybody_can_be_taken_out() {
        let mut queue = queue(&[
            (1, false, Position::Back),
            (2, false, Position::Boosted),
            (3, false, Position::Back),
        ]);
        queue.remove(&Number(2));
        queue.remove(&Number(3));
        queue.remove(&Number(7));
        assert_eq!(queue.next().unwrap().vcpu, Number(1));
        assert!(queue.is_empty() && queue.weight() == 0);
    }
}
