//! Homes that keep what they are given.

use mm_engine::{Homes, HostBuffer, Place};
use std::{collections::HashMap, sync::Mutex};

#[derive(Default)]
pub(crate) struct Home(Mutex<HashMap<(Option<usize>, usize), HostBuffer>>);

fn key(place: Place, slab: usize) -> (Option<usize>, usize) {
    (if let Place::Group(group) = place { Some(group) } else { None }, slab)
}

impl Homes<HostBuffer> for Home {
    fn put(&self, place: Place, slab: usize, buffer: HostBuffer) -> Result<(), (HostBuffer, String)> {
        self.0.lock().expect("no panic").insert(key(place, slab), buffer);
        Ok(())
    }

    fn take(&self, place: Place, slab: usize) -> Result<HostBuffer, String> {
        self.0.lock().expect("no panic").remove(&key(place, slab)).ok_or_else(|| "no buffer".to_owned())
    }
}
