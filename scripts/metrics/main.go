// Command metrics prints the table of docs/metrics.md: every metric that the source
// declares.
package main

import (
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

type metric struct {
	name, kind, help string
	labels           []string
}

func main() {
	metrics, err := declared("internal")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}

	fmt.Print("| metric | type | labels | |\n|---|---|---|---|\n")

	for _, m := range metrics {
		labels := ""
		if len(m.labels) > 0 {
			labels = "`" + strings.Join(m.labels, "`, `") + "`"
		}

		fmt.Printf("| `%s` | %s | %s | %s |\n", m.name, m.kind, labels, m.help)
	}
}

// declared returns the metrics below a folder, sorted by name.
func declared(root string) (metrics []metric, err error) {
	err = filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}

		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}

		ast.Inspect(file, func(node ast.Node) bool {
			call, ok := node.(*ast.CallExpr)
			if !ok {
				return true
			}

			if m, ok := metricOf(call); ok {
				metrics = append(metrics, m)
			}

			return true
		})

		return nil
	})

	slices.SortFunc(metrics, func(a, b metric) int { return cmp.Compare(a.name, b.name) })

	return metrics, err
}

// kinds maps functions that declare metrics to the kinds of metric.
var kinds = map[string]string{
	"NewCounter": "counter", "NewCounterVec": "counter", "NewGauge": "gauge", "NewGaugeVec": "gauge",
	"NewHistogram": "histogram", "NewHistogramVec": "histogram",
}

// metricOf returns the metric that a call declares: NewGaugeVec(prometheus.GaugeOpts{...},
// labels), or desc(name, help, labels...) of a collector.
func metricOf(call *ast.CallExpr) (m metric, ok bool) {
	switch function := call.Fun.(type) {
	case *ast.SelectorExpr:
		m.kind, ok = kinds[function.Sel.Name]
		if !ok || len(call.Args) == 0 {
			return m, false
		}

		m.name, m.help = options(call.Args[0])
		m.labels = texts(call.Args[1:]...)

		return m, m.name != ""
	case *ast.Ident:
		parts := texts(call.Args...)
		if function.Name != "desc" || len(parts) < 2 {
			return m, false
		}

		m = metric{name: "millrace_" + parts[0], kind: "gauge", help: parts[1], labels: parts[2:]}
		if strings.HasSuffix(m.name, "_total") {
			m.kind = "counter"
		}

		return m, true
	default:
		return m, false
	}
}

// options returns the fields Name and Help of a literal.
func options(node ast.Node) (name, help string) {
	ast.Inspect(node, func(node ast.Node) bool {
		field, ok := node.(*ast.KeyValueExpr)
		if !ok {
			return true
		}

		if key, ok := field.Key.(*ast.Ident); ok {
			switch key.Name {
			case "Name":
				name = strings.Join(texts(field.Value), "")
			case "Help":
				help = strings.Join(texts(field.Value), "")
			}
		}

		return true
	})

	return name, help
}

// texts returns the string literals in expressions.
func texts(expressions ...ast.Expr) (list []string) {
	for _, e := range expressions {
		ast.Inspect(e, func(node ast.Node) bool {
			if literal, ok := node.(*ast.BasicLit); ok && literal.Kind == token.STRING {
				if text, err := strconv.Unquote(literal.Value); err == nil {
					list = append(list, text)
				}
			}

			return true
		})
	}

	return list
}
