//! Every input of the corpus, without the fuzzer: what was found once stays found.

use std::fs;
use std::path::Path;

#[test]
fn every_input_keeps_its_promise() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, target) in zmachine_fuzz::TARGETS {
        let list = fs::read_dir(corpus.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut count = 0;
        for entry in list {
            let path = entry.unwrap().path();
            eprintln!("{}", path.display());
            target(&fs::read(&path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{name} has no corpus");
    }
}

#[test]
fn nothing_at_all_is_an_input_as_well() {
    for (_, target) in zmachine_fuzz::TARGETS {
        for length in [0, 1, 5, 100] {
            target(&vec![0; length]);
        }
    }
}
