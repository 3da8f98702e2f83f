//! The tests that a kernel selftest has, as its source declares them.
//!
//! They are taken from the source and not from what the program says, so that a test that the program
//! leaves out is missed.

/// The name of each test, as results have it: `FIXTURE.VARIANT.TEST`.
pub fn tests(source: &str) -> Vec<String> {
    let variants: Vec<[&str; 2]> = declared(source, &["FIXTURE_VARIANT_ADD"]).collect();
    let tests = declared(source, &["TEST_F", "TEST_F_SIGNAL", "TEST_F_TIMEOUT"]);
    tests
        .flat_map(|[fixture, test]| {
            let of_fixture = variants.iter().filter(move |[of, _]| *of == fixture);
            let mut names: Vec<String> = of_fixture
                .map(|[_, variant]| format!("{fixture}.{variant}.{test}"))
                .collect();
            if names.is_empty() {
                names.push(format!("{fixture}.{test}"));
            }
            names
        })
        .collect()
}

/// The first two arguments of each use of one of `macros`, which stand at the beginning of a line.
fn declared<'a>(source: &'a str, macros: &'a [&'a str]) -> impl Iterator<Item = [&'a str; 2]> + 'a {
    source.lines().filter_map(|line| {
        let (name, rest) = line.split_once('(')?;
        if !macros.contains(&name.trim_end()) {
            return None;
        }
        let mut arguments = rest.split([',', ')']).map(str::trim);
        Some([arguments.next()?, arguments.next()?])
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_test_runs_on_every_variant_of_its_fixture() {
        let source = "\
#define TEST_F(one, two)
FIXTURE(a)
{
};
FIXTURE_VARIANT(a)
{
};
FIXTURE_VARIANT_ADD(a, small)
{
};
FIXTURE_VARIANT_ADD(a, large)
FIXTURE_VARIANT_ADD(b, only)
/* TEST_F(a, no) */
TEST_F(a, reads)
{
\tTEST_F(a, no);
}
TEST_F_TIMEOUT(b, waits, 60)
TEST_F(plain, runs)
";
        assert_eq!(
            super::tests(source),
            [
                "a.small.reads",
                "a.large.reads",
                "b.only.waits",
                "plain.runs"
            ]
        );
        assert!(super::tests("int main(void) { return 0; }").is_empty());
    }
}
