//! Paging: error codes and CR2 of page faults, accessed and dirty bits, and translations that are forgotten when told so.

use plinth_rt::cpu;
use plinth_rt::paging::{self, PAGE, flag};
use plinth_rt::suite::{faulted, trapped};
use plinth_rt::trap::vector;
use plinth_rt::{Gprs, Outcome, Snippet, Trap, Why, check_eq, snippet};

use crate::PAGES;

const EFER: u32 = 0xc000_0080;
const NXE: u64 = 1 << 11;

fn at(rdi: u64) -> Gprs {
    Gprs { rdi, ..Gprs::ZERO }
}

#[inline(never)]
fn load() -> Snippet {
    snippet!("mov al, [rdi]")
}

#[inline(never)]
fn store() -> Snippet {
    snippet!("mov [rdi], al")
}

fn fault(
    snippet: &Snippet,
    result: Result<Gprs, Trap>,
    error: u64,
    address: u64,
) -> Result<(), Why> {
    let trap = faulted(snippet, result, vector::PF, error)?;
    check_eq!(trap.cr2, address, "CR2");
    Ok(())
}

/// Error code of a reserved bit in a present entry: P and RSVD; TCG forgets P.
fn reserved() -> u64 {
    if crate::is_tcg() { 8 } else { 9 }
}

pub fn absent_page() -> Outcome {
    let address = paging::map(8, 0, 0) + 0x321;
    fault(&load(), load().run(at(address)), 0, address)?;
    fault(&store(), store().run(at(address)), 2, address)?;
    fault(&load(), load().run_user(at(address)), 4, address)?;
    fault(&store(), store().run_user(at(address)), 6, address)
}

pub fn supervisor_page() -> Outcome {
    let address = paging::map(8, PAGES.address(), flag::PRESENT | flag::WRITE);
    load().run(at(address))?;
    fault(&load(), load().run_user(at(address)), 5, address)?;
    fault(&store(), store().run_user(at(address)), 7, address)
}

pub fn read_only_page() -> Outcome {
    let address = paging::map(8, PAGES.address(), flag::PRESENT | flag::USER);
    load().run_user(at(address))?;
    fault(&store(), store().run_user(at(address)), 7, address)?;
    fault(&store(), store().run(at(address)), 3, address)
}

pub fn no_execute_page() -> Outcome {
    let address = paging::map(8, PAGES.address(), flag::ALL | flag::NO_EXECUTE);
    let copy = snippet!("nop").copy_to(address);
    fault(&copy, copy.run(Gprs::ZERO), 0x11, address)?;
    fault(&copy, copy.run_user(Gprs::ZERO), 0x15, address)?;
    paging::map(8, PAGES.address(), flag::ALL);
    copy.run(Gprs::ZERO)?;
    Ok(())
}

/// Without EFER.NXE the bit is reserved.
pub fn no_execute_bit_without_nxe() -> Outcome {
    let address = paging::map(8, PAGES.address(), flag::ALL | flag::NO_EXECUTE);
    let efer = cpu::rdmsr(EFER)?;
    cpu::wrmsr(EFER, efer & !NXE)?;
    paging::flush();
    let result = load().run(at(address));
    cpu::wrmsr(EFER, efer)?;
    fault(&load(), result, reserved(), address)
}

/// A bit of the address beyond the machine's physical width is reserved.
pub fn reserved_bit() -> Outcome {
    let width = cpu::cpuid(0x8000_0008, 0).eax & 0xff;
    if width >= 52 {
        return Ok(());
    }
    let address = paging::map(8, PAGES.address(), flag::ALL);
    paging::set_entry(8, paging::entry(8) | 1 << 51);
    let result = load().run(at(address));
    paging::set_entry(8, 0);
    fault(&load(), result, reserved(), address)
}

pub fn accessed_and_dirty() -> Outcome {
    let bits = flag::ACCESSED | flag::DIRTY;
    let address = paging::map(8, PAGES.address(), flag::ALL);
    check_eq!(paging::entry(8) & bits, 0, "entry");
    load().run(at(address))?;
    check_eq!(
        paging::entry(8) & bits,
        flag::ACCESSED,
        "entry after a load"
    );
    store().run(at(address))?;
    check_eq!(paging::entry(8) & bits, bits, "entry after a store");
    Ok(())
}

pub fn invlpg() -> Outcome {
    PAGES.set(0, 0x11);
    PAGES.set(PAGE as usize, 0x22);
    let address = paging::map(8, PAGES.address(), flag::ALL);
    check_eq!(load().run(at(address))?.rax, 0x11, "first page");
    paging::map(8, PAGES.address() + PAGE, flag::ALL);
    check_eq!(load().run(at(address))?.rax, 0x22, "second page");
    Ok(())
}

/// A global page may outlive a load of CR3, and does not outlive a change of CR4.PGE.
pub fn global_pages() -> Outcome {
    const PGE: u64 = 1 << 7;
    let cr4 = cpu::cr4()?;
    cpu::set_cr4(cr4 | PGE)?;
    PAGES.set(0, 0x11);
    PAGES.set(PAGE as usize, 0x22);
    let address = paging::map(9, PAGES.address(), flag::ALL | flag::GLOBAL);
    check_eq!(load().run(at(address))?.rax, 0x11, "first page");
    paging::replace_entry(9, (PAGES.address() + PAGE) | flag::ALL);
    cpu::set_cr4(cr4 & !PGE)?;
    check_eq!(load().run(at(address))?.rax, 0x22, "second page");
    paging::set_entry(9, 0);
    cpu::set_cr4(cr4)?;
    Ok(())
}

/// The window's page tables can be loaded as another address space, and CR3 tells which one is in use.
pub fn cr3_load_forgets() -> Outcome {
    PAGES.set(0, 0x33);
    PAGES.set(PAGE as usize, 0x44);
    let address = paging::map(9, PAGES.address(), flag::ALL);
    check_eq!(load().run(at(address))?.rax, 0x33, "first page");
    paging::replace_entry(9, (PAGES.address() + PAGE) | flag::ALL);
    cpu::set_cr3(cpu::cr3()?)?;
    check_eq!(load().run(at(address))?.rax, 0x44, "second page");
    Ok(())
}

pub fn stack_page_fault() -> Outcome {
    let address = paging::map(8, 0, 0);
    let snippet = snippet!("push rax");
    let user = snippet!("mov rbx, rsp", "mov rsp, rdi", "push rax", "mov rsp, rbx");
    let trap = trapped(user.run_user(at(address + 64)), vector::PF)?;
    check_eq!(trap.cr2, address + 56, "CR2");
    check_eq!(trap.error, 6, "error code");
    check_eq!(trap.frame.rsp, address + 64, "RSP");
    check_eq!(snippet.length(), 1, "length of PUSH");
    Ok(())
}
