//! Finds the framebuffer of the graphics output protocol (UEFI 12.9).
//!
//! The mode stays as the firmware has set it: it knows the screen.

#![allow(unsafe_code, reason = "a protocol opened without exclusive access")]

use bootloader_api::info::{FrameBufferInfo, PixelFormat};
use uefi::boot::{self, OpenProtocolAttributes, OpenProtocolParams};
use uefi::proto::console::gop::{GraphicsOutput, PixelBitmask, PixelFormat as Format};

use crate::console;

/// A framebuffer in physical memory.
pub struct Framebuffer {
    /// Its physical address.
    pub address: u64,
    /// Its size and format.
    pub info: FrameBufferInfo,
}

/// The framebuffer of the screen that the firmware's console is on, or of any other; `None` if no screen has one that
/// can be written directly.
pub fn framebuffer() -> Option<Framebuffer> {
    let handles = boot::find_handles::<GraphicsOutput>().ok()?;
    let on_console = |handle: &_| console::output_devices().any(|device| device == *handle);
    let (first, others): (alloc::vec::Vec<_>, alloc::vec::Vec<_>) =
        handles.into_iter().partition(on_console);
    first.into_iter().chain(others).find_map(of_handle)
}

extern crate alloc;

fn of_handle(handle: uefi::Handle) -> Option<Framebuffer> {
    let params = OpenProtocolParams {
        handle,
        agent: boot::image_handle(),
        controller: None,
    };
    // SAFETY: opened exclusively, the text console would be disconnected from the screen. The mode is only read, before
    // control returns to the firmware that could change it.
    let mut output = unsafe {
        boot::open_protocol::<GraphicsOutput>(params, OpenProtocolAttributes::GetProtocol)
    }
    .ok()?;
    let mode = output.current_mode_info();
    let (pixel_format, bytes_per_pixel) = match (mode.pixel_format(), mode.pixel_bitmask()) {
        (Format::Rgb, _) => (PixelFormat::Rgb, 4),
        (Format::Bgr, _) => (PixelFormat::Bgr, 4),
        (Format::Bitmask, Some(mask)) => of_bitmask(&mask),
        _ => return None,
    };
    let (width, height) = mode.resolution();
    let mut buffer = output.frame_buffer();
    let address = buffer.as_mut_ptr() as u64;
    let (byte_len, stride) = (buffer.size(), mode.stride());
    let needed = stride.checked_mul(height)?.checked_mul(bytes_per_pixel)?;
    let plausible = address != 0 && needed > 0 && needed <= byte_len && width <= stride;
    plausible.then_some(Framebuffer {
        address,
        info: FrameBufferInfo {
            byte_len,
            width,
            height,
            pixel_format,
            bytes_per_pixel,
            stride,
        },
    })
}

fn of_bitmask(mask: &PixelBitmask) -> (PixelFormat, usize) {
    let all = mask.red | mask.green | mask.blue | mask.reserved;
    let bytes = (u32::BITS - all.leading_zeros()).div_ceil(8) as usize;
    let format = match (mask.red, mask.green, mask.blue) {
        (0xff, 0xff00, 0xff_0000) => PixelFormat::Rgb,
        (0xff_0000, 0xff00, 0xff) => PixelFormat::Bgr,
        (0xff, 0xff, 0xff) => PixelFormat::U8,
        (red, green, blue) => PixelFormat::Unknown {
            red_position: red.trailing_zeros() as u8,
            green_position: green.trailing_zeros() as u8,
            blue_position: blue.trailing_zeros() as u8,
        },
    };
    (format, bytes)
}
