//! Components whose weights are the very same files, by whatever paths: they count once.

use std::path::Path;

use mm_plan::Component;

use crate::checkpoint::CheckpointComponent;

/// Makes every component whose files another one before it has too an alias of that one, if both load the same of them.
pub(crate) fn mark(components: &mut [CheckpointComponent]) {
    let identities: Vec<Vec<Option<Identity>>> =
        components.iter().map(|component| component.files.iter().map(|file| Identity::of(file)).collect()).collect();
    for index in 1..components.len() {
        let known = identities[index].iter().all(Option::is_some);
        let loaded = |index: usize| (components[index].tensors, components[index].device_bytes);
        let same = |first: &usize| identities[*first] == identities[index] && loaded(*first) == loaded(index);
        let Some(first) = (0..index).filter(|_| known).find(same) else { continue };
        let name = components[first].name.clone();
        let component = &mut components[index];
        component.component = Component {
            phase: component.component.phase,
            same_as: Some(name.clone()),
            ..Component::whole(component.name.as_str(), 0)
        };
        component.same_as = Some(name);
    }
}

/// What makes two paths one file: links of either kind lead to the same.
#[derive(PartialEq, Eq)]
struct Identity {
    #[cfg(unix)]
    inode: (u64, u64),
    #[cfg(not(unix))]
    path: std::path::PathBuf,
}

impl Identity {
    #[cfg(unix)]
    fn of(file: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        file.metadata().ok().map(|metadata| Self { inode: (metadata.dev(), metadata.ino()) })
    }

    #[cfg(not(unix))]
    fn of(file: &Path) -> Option<Self> {
        file.canonicalize().ok().map(|path| Self { path })
    }
}
