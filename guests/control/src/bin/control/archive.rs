//! The module archive: machine files, images, and the kernel's command line.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeSet;
use alloc::rc::Rc;
use alloc::string::String;

use plinth_guest_control::config::{Machine, is_good_name, usual_image};
use plinth_guest_control::{format, suggest};
use tar_no_std::TarArchiveRef;

/// The control guest's own image, which is no machine.
const OWN_NAME: &str = "control";

/// The archive that the machine was booted with.
pub struct Archive {
    /// `None` where it is damaged, or there is none.
    files: Option<TarArchiveRef<'static>>,
}

impl Archive {
    /// The archive in these bytes.
    pub fn new(bytes: &'static [u8]) -> Self {
        Self {
            files: TarArchiveRef::new(bytes).ok(),
        }
    }

    /// The file of this path.
    pub fn find(&self, path: &str) -> Option<&'static [u8]> {
        self.files
            .iter()
            .flat_map(TarArchiveRef::entries)
            .find(|entry| entry.filename().as_str() == Ok(path))
            .map(|entry| entry.data())
    }

    /// The text file of this path.
    pub fn text(&self, path: &str) -> Option<&'static str> {
        core::str::from_utf8(self.find(path)?).ok()
    }

    /// The names of all machines, in order.
    pub fn machines(&self) -> BTreeSet<String> {
        let name = |path: &str| {
            let of_file = path
                .strip_prefix("machines/")
                .and_then(|rest| rest.strip_suffix(".toml"));
            of_file
                .or(path.strip_prefix("guests/"))
                .map(ToOwned::to_owned)
        };
        self.files
            .iter()
            .flat_map(TarArchiveRef::entries)
            .filter_map(|entry| name(entry.filename().as_str().ok()?))
            .filter(|name| name != OWN_NAME && is_good_name(name))
            .collect()
    }

    /// The machine of this name; why not.
    pub fn machine(&self, name: &str) -> Result<Rc<Machine>, String> {
        let path = alloc::format!("machines/{name}.toml");
        let machine = match self.find(&path) {
            Some(bytes) => {
                let text =
                    core::str::from_utf8(bytes).map_err(|_| alloc::format!("{path} is no text"))?;
                Machine::parse(name, text).map_err(|error| alloc::format!("{path}, {error}"))?
            }
            None if name != OWN_NAME && self.find(&usual_image(name)).is_some() => {
                Machine::without_file(name)
            }
            None => return Err(self.unknown(name)),
        };
        Ok(Rc::new(machine))
    }

    fn unknown(&self, name: &str) -> String {
        let machines = self.machines();
        let hint = match suggest::nearest(name, machines.iter().map(String::as_str)) {
            Some(near) => alloc::format!("did you mean `{near}`?"),
            None => alloc::format!("there are: {}", format::listed(&machines)),
        };
        alloc::format!("no machine is called `{name}`; {hint}")
    }
}
