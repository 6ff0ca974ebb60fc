//! Atomics and locks that a model can follow.
//!
//! Each is `core`'s or `spin`'s, and looks like it: constants, statics and all other tests work with them as ever. While a model
//! runs on the thread, an access also goes to a double of loom's, which says what is read. It is made at the first access, with the
//! value that is there, and forgotten with the model's run. What has been accessed must not be moved, for doubles are found by the
//! address. And an atomic's first access has to come before those of other threads, for loom takes the making for a write of its own.

#![allow(unsafe_code, reason = "a guard beside the lock that it borrows")]

use core::any::Any;
use core::cell::RefCell;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ops::{Deref, DerefMut};
use std::collections::HashMap;
use std::rc::Rc;

thread_local! {
    /// The doubles of the model that runs on this thread, by the address of what they stand for.
    static DOUBLES: RefCell<Option<HashMap<usize, Rc<dyn Any>>>> = const { RefCell::new(None) };
}

/// A model's run on this thread, until it is dropped.
pub(super) struct Modelled(());

impl Modelled {
    /// From now on accesses go to doubles.
    pub(super) fn begin() -> Self {
        DOUBLES.set(Some(HashMap::new()));
        Self(())
    }
}

impl Drop for Modelled {
    fn drop(&mut self) {
        // The doubles are dropped when the map is not borrowed.
        let doubles = DOUBLES.take();
        drop(doubles);
    }
}

/// Whether a model runs on this thread.
fn is_modelled() -> bool {
    !std::thread::panicking() && DOUBLES.with_borrow(Option::is_some)
}

/// Whether a model has failed on this thread, whose threads drop now what they have. That is followed no further.
fn has_failed() -> bool {
    std::thread::panicking() && DOUBLES.with_borrow(Option::is_some)
}

/// The double of what lies at `at`; `None` outside of models.
fn double<D: 'static>(at: usize, make: impl FnOnce() -> D) -> Option<Rc<D>> {
    if !is_modelled() {
        return None;
    }
    let known = DOUBLES.with_borrow(|doubles| doubles.as_ref()?.get(&at).cloned());
    if let Some(Ok(known)) = known.map(Rc::downcast) {
        return Some(known);
    }
    let new = Rc::new(make());
    DOUBLES.with_borrow_mut(|doubles| doubles.as_mut()?.insert(at, new.clone()));
    Some(new)
}

/// What lay at `at` is no more.
fn forget(at: usize) {
    // Not where the thread itself is about to end.
    let _ = DOUBLES.try_with(|doubles| {
        let old = doubles.borrow_mut().as_mut()?.remove(&at);
        drop(old);
        Some(())
    });
}

/// As [`core::hint::spin_loop`]; in a model the others go on.
pub fn spin_loop() {
    if is_modelled() {
        loom::thread::yield_now();
    } else {
        core::hint::spin_loop();
    }
}

/// Atomics, and [`fence`](atomic::fence).
pub mod atomic {
    pub use core::sync::atomic::Ordering;

    use super::{Rc, double, fmt, forget, is_modelled};

    /// As [`core::sync::atomic::fence`].
    pub fn fence(order: Ordering) {
        if is_modelled() {
            loom::sync::atomic::fence(order);
        } else {
            core::sync::atomic::fence(order);
        }
    }

    /// loom takes a sequentially consistent access for one that acquires and releases. On x86 a full barrier is part of every such
    /// write (SDM vol. 3 9.2.3.9), so that is what the write is followed by.
    fn settle(order: Ordering) {
        if order == Ordering::SeqCst {
            loom::sync::atomic::fence(order);
        }
    }

    /// An atomic's double.
    struct Double<A> {
        atomic: A,
        /// Taken before each load. loom forgets that somebody has loaded when another one has: it does not try to let that one, which may
        /// then store, come first. Of changes it forgets none.
        turn: loom::sync::atomic::AtomicBool,
    }

    impl<A> Double<A> {
        fn new(atomic: A) -> Self {
            let turn = loom::sync::atomic::AtomicBool::new(false);
            Self { atomic, turn }
        }
    }

    macro_rules! atomics {
        ($($name:ident: $value:ty, $($update:ident)*;)*) => {$(
            #[doc = concat!("As [`core::sync::atomic::", stringify!($name), "`].")]
            #[derive(Default)]
            #[repr(transparent)]
            pub struct $name(core::sync::atomic::$name);

            #[allow(missing_docs, dead_code, reason = "as those of the same names in core")]
            impl $name {
                pub const fn new(value: $value) -> Self {
                    Self(core::sync::atomic::$name::new(value))
                }

                fn double(&self) -> Option<Rc<Double<loom::sync::atomic::$name>>> {
                    double(core::ptr::from_ref(self).addr(), || {
                        Double::new(loom::sync::atomic::$name::new(self.0.load(Ordering::Relaxed)))
                    })
                }

                #[track_caller]
                pub fn load(&self, order: Ordering) -> $value {
                    match self.double() {
                        Some(double) => {
                            double.turn.swap(false, Ordering::Relaxed);
                            double.atomic.load(order)
                        }
                        None => self.0.load(order),
                    }
                }

                #[track_caller]
                pub fn store(&self, value: $value, order: Ordering) {
                    match self.double() {
                        Some(double) => {
                            double.atomic.store(value, order);
                            self.0.store(value, Ordering::Relaxed);
                            settle(order);
                        }
                        None => self.0.store(value, order),
                    }
                }

                #[track_caller]
                pub fn compare_exchange_weak(
                    &self,
                    old: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    match self.double() {
                        Some(double) => {
                            let done = double.atomic.compare_exchange_weak(old, new, success, failure);
                            if done.is_ok() {
                                self.0.store(new, Ordering::Relaxed);
                            }
                            settle(success);
                            done
                        }
                        None => self.0.compare_exchange_weak(old, new, success, failure),
                    }
                }

                $(
                    #[track_caller]
                    pub fn $update(&self, value: $value, order: Ordering) -> $value {
                        match self.double() {
                            Some(double) => {
                                let old = double.atomic.$update(value, order);
                                self.0.$update(value, Ordering::Relaxed);
                                settle(order);
                                old
                            }
                            None => self.0.$update(value, order),
                        }
                    }
                )*

                #[track_caller]
                pub fn try_update(
                    &self,
                    set: Ordering,
                    fetch: Ordering,
                    change: impl Fn($value) -> Option<$value>,
                ) -> Result<$value, $value> {
                    let mut old = self.load(fetch);
                    while let Some(new) = change(old) {
                        match self.compare_exchange_weak(old, new, set, fetch) {
                            Ok(old) => return Ok(old),
                            Err(found) => old = found,
                        }
                    }
                    Err(old)
                }
            }

            impl fmt::Debug for $name {
                fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    self.load(Ordering::Relaxed).fmt(f)
                }
            }

            impl Drop for $name {
                fn drop(&mut self) {
                    forget(core::ptr::from_ref(self).addr());
                }
            }
        )*};
    }

    atomics! {
        AtomicBool: bool, swap;
        AtomicU32: u32, swap fetch_add fetch_sub fetch_and fetch_or;
        AtomicU64: u64, swap fetch_add fetch_sub fetch_and fetch_or;
        AtomicUsize: usize, swap fetch_add fetch_sub fetch_max;
    }
}

/// As [`spin::Mutex`].
#[derive(Default)]
pub struct Mutex<T>(spin::Mutex<T>);

/// As [`spin::MutexGuard`].
pub struct MutexGuard<'a, T> {
    // In this order they are dropped.
    data: spin::MutexGuard<'a, T>,
    _double: Option<DoubleGuard>,
}

/// The lock of a double.
struct DoubleGuard {
    guard: ManuallyDrop<loom::sync::MutexGuard<'static, ()>>,
    _lock: Rc<loom::sync::Mutex<()>>,
}

impl DoubleGuard {
    fn new(
        lock: Rc<loom::sync::Mutex<()>>,
        take: impl FnOnce(&'static loom::sync::Mutex<()>) -> Option<loom::sync::MutexGuard<'static, ()>>,
    ) -> Option<Self> {
        // SAFETY: the lock is on the heap, and lives as long as the guard does, which is dropped first.
        let guard = take(unsafe { &*Rc::as_ptr(&lock) })?;
        Some(Self {
            guard: ManuallyDrop::new(guard),
            _lock: lock,
        })
    }
}

impl Drop for DoubleGuard {
    fn drop(&mut self) {
        // A model that has failed is followed no further.
        if is_modelled() {
            // SAFETY: it is dropped here only, and before the lock.
            unsafe { ManuallyDrop::drop(&mut self.guard) };
        }
    }
}

#[allow(missing_docs, reason = "as those of the same names in spin")]
impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(spin::Mutex::new(value))
    }

    fn double(&self) -> Option<Rc<loom::sync::Mutex<()>>> {
        double(core::ptr::from_ref(self).addr(), || {
            loom::sync::Mutex::new(())
        })
    }

    #[track_caller]
    pub fn lock(&self) -> MutexGuard<'_, T> {
        let Some(double) = self.double() else {
            if has_failed() && self.0.is_locked() {
                // SAFETY: whoever had it goes on no more, but for dropping what it has, and left it at a call.
                unsafe { self.0.force_unlock() };
            }
            return MutexGuard {
                data: self.0.lock(),
                _double: None,
            };
        };
        let double = DoubleGuard::new(double, |double| double.lock().ok());
        self.guard(double)
    }

    /// In a model it may wait: loom lets who is about to try go on only when the lock is free.
    #[track_caller]
    pub fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let Some(double) = self.double() else {
            return Some(MutexGuard {
                data: self.0.try_lock()?,
                _double: None,
            });
        };
        let double = DoubleGuard::new(double, |double| double.try_lock().ok())?;
        Some(self.guard(Some(double)))
    }

    /// Whoever has the double has the lock.
    fn guard(&self, double: Option<DoubleGuard>) -> MutexGuard<'_, T> {
        match self.0.try_lock() {
            Some(data) if double.is_some() => MutexGuard {
                data,
                _double: double,
            },
            _ => panic!("a lock was taken before the model"),
        }
    }

    pub fn get_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }
}

impl<T> Drop for Mutex<T> {
    fn drop(&mut self) {
        forget(core::ptr::from_ref(self).addr());
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.data
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.data
    }
}
