//! `mm hash`: content ids.

use crate::args::HashArgs;
use crate::exit::Failure;
use crate::table::print;
use mm_cache::ContentId;
use serde_json::json;
use std::path::PathBuf;

pub(crate) fn run(args: &HashArgs) -> Result<(), Failure> {
    let mut files = Vec::new();
    for path in &args.paths {
        files.extend(mm_cache::content_ids(path)?);
    }
    if args.json {
        // A name that is no text is shown as far as it is.
        let file = |(path, id): &(PathBuf, ContentId)| json!({"path": path.to_string_lossy(), "id": id.to_string()});
        let files: Vec<_> = files.iter().map(file).collect();
        return print(json!({"schema": 1, "files": files}));
    }
    let lines: Vec<_> = files.iter().map(|(path, id)| format!("{id}  {}", path.display())).collect();
    print(lines.join("\n"))
}
