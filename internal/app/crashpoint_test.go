package app_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/millracehq/millrace/internal/engine/crashpoint"
)

const root = "../.."

// parse parses a file of the repository.
func parse(t *testing.T, path string) *ast.File {
	t.Helper()

	file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}

	return file
}

// pointNames returns the names of the constants in package crashpoint.
func pointNames(t *testing.T) map[string]crashpoint.Point {
	t.Helper()

	names := map[string]crashpoint.Point{}

	ast.Inspect(parse(t, root+"/internal/engine/crashpoint/crashpoint.go"), func(n ast.Node) bool {
		spec, is := n.(*ast.ValueSpec)
		if !is || spec.Type == nil {
			return true
		}

		if text, is := spec.Values[0].(*ast.BasicLit); is {
			value, _ := strconv.Unquote(text.Value)
			names[spec.Names[0].Name] = crashpoint.Point(value)
		}

		return true
	})

	return names
}

// use is a call of crashpoint.At.
type use struct {
	Point      crashpoint.Point
	File, Func string
}

// usesIn returns the calls of crashpoint.At in a file.
func usesIn(t *testing.T, path string, names map[string]crashpoint.Point) (uses []use) {
	t.Helper()

	for _, decl := range parse(t, filepath.Join(root, path)).Decls {
		function, is := decl.(*ast.FuncDecl)
		if !is {
			continue
		}

		ast.Inspect(function, func(n ast.Node) bool {
			call, is := n.(*ast.CallExpr)
			if !is || qualified(call.Fun) != "crashpoint.At" {
				return true
			}

			name := strings.TrimPrefix(qualified(call.Args[0]), "crashpoint.")
			uses = append(uses, use{names[name], path, function.Name.Name})

			return true
		})
	}

	return uses
}

// qualified returns an identifier of another package, or "".
func qualified(e ast.Expr) string {
	if selected, is := e.(*ast.SelectorExpr); is {
		if pkg, is := selected.X.(*ast.Ident); is {
			return pkg.Name + "." + selected.Sel.Name
		}
	}

	return ""
}

func TestEachCrashPointIsInItsPlaceAndNowhereElse(t *testing.T) {
	t.Parallel()

	names := pointNames(t)
	got, want := map[crashpoint.Point][]use{}, map[crashpoint.Point][]use{}

	for _, d := range crashpoint.Declared {
		want[d.Point] = append(want[d.Point], use{d.Point, d.File, d.Func})
	}

	if len(names) != len(want) {
		t.Errorf("there are %d constants and %d declarations", len(names), len(want))
	}

	err := filepath.WalkDir(filepath.Join(root, "internal"), func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}

		relative, err := filepath.Rel(root, path)
		for _, u := range usesIn(t, filepath.ToSlash(relative), names) {
			got[u.Point] = append(got[u.Point], u)
		}

		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("declared and used crash points differ (-declared +used):\n" + diff)
	}
}

func TestTheReleasedProgramHasNoCrashPoints(t *testing.T) {
	t.Parallel()

	content, err := os.ReadFile(program(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}

	for _, d := range crashpoint.Declared {
		if bytes.Contains(content, []byte(d.Point)) {
			t.Errorf("the program contains the name of the crash point %s", d.Point)
		}
	}

	for _, trace := range []string{crashpoint.Variable, "crashpoint.At\x00"} {
		if bytes.Contains(content, []byte(trace)) {
			t.Errorf("the program contains %q", trace)
		}
	}
}
