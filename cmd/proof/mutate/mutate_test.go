package mutate

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/millracehq/millrace/cmd/proof/server"
)

// rounds divides the mutations so that no two of a round edit the same file. A round
// compiles at once.
func rounds() (all [][]Mutation) {
	files := func(m Mutation) (list []string) {
		for _, e := range m.Edits {
			list = append(list, e.File)
		}

		return list
	}

	for _, m := range Mutations {
		at := slices.IndexFunc(all, func(round []Mutation) bool {
			return !slices.ContainsFunc(round, func(other Mutation) bool {
				return slices.ContainsFunc(files(other), func(file string) bool { return slices.Contains(files(m), file) })
			})
		})

		if at < 0 {
			all, at = append(all, nil), len(all)
		}

		all[at] = append(all[at], m)
	}

	return all
}

func TestEachMutationAppliesAndCompiles(t *testing.T) {
	t.Parallel()

	root, err := server.Root()
	if err != nil {
		t.Fatal(err)
	}

	for _, round := range rounds() {
		var (
			together Mutation
			args     []string
		)

		for _, m := range round {
			together.Edits = append(together.Edits, m.Edits...)

			for _, e := range m.Edits {
				args = append(args, "./"+filepath.Dir(e.File))
			}
		}

		overlay, err := together.Overlay(root, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}

		slices.Sort(args)

		cmd := exec.Command("go", append([]string{"build", "-overlay", overlay}, slices.Compact(args)...)...)
		cmd.Dir = root

		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
}

func TestEachMutationHasItsOwnNameAndSomethingToFindIt(t *testing.T) {
	t.Parallel()

	names := map[string]bool{}

	for _, m := range Mutations {
		if names[m.Name] || len(m.Trials)+len(m.Tests) == 0 {
			t.Errorf("%s: is there twice, or nothing is expected to find it", m.Name)
		}

		names[m.Name] = true
	}
}
