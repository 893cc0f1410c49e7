//! `mm hash`: content ids.

use crate::args::HashArgs;
use crate::exit::Failure;
use crate::table::print;
use serde_json::json;

pub(crate) fn run(args: &HashArgs) -> Result<(), Failure> {
    let mut files = Vec::new();
    for path in &args.paths {
        files.extend(mm_cache::content_ids(path)?);
    }
    if args.json {
        let files: Vec<_> = files.iter().map(|(path, id)| json!({"path": path, "id": id.to_string()})).collect();
        return print(json!({"schema": 1, "files": files}));
    }
    let lines: Vec<_> = files.iter().map(|(path, id)| format!("{id}  {}", path.display())).collect();
    print(lines.join("\n"))
}
