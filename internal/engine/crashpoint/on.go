//go:build crashpoints

package crashpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// crash is the point at which the process kills itself, and the number of passes until
// then.
var crash struct {
	at   Point
	left atomic.Int64
}

func init() { //nolint:gochecknoinits // a crash may be in whatever runs first
	name, pass, numbered := strings.Cut(os.Getenv(Variable), ":")
	if name == "" {
		return
	}

	n, err := int64(1), error(nil)
	if numbered {
		n, err = strconv.ParseInt(pass, 10, 64)
	}

	known := slices.ContainsFunc(Declared, func(d Declaration) bool { return string(d.Point) == name })
	if !known || err != nil || n < 1 {
		fmt.Fprintf(os.Stderr, "%s: is %q, expected the name of a crash point, and optionally a colon and the number of the pass\n", Variable, os.Getenv(Variable))
		os.Exit(2)
	}

	crash.at = Point(name)
	crash.left.Store(n)
}

// At kills the process with SIGKILL if it is the pass of the point that [Variable] names.
func At(p Point) {
	if p != crash.at || crash.left.Add(-1) != 0 {
		return
	}

	fmt.Fprintf(os.Stderr, "crashpoint: killed at %s\n", p)
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)

	select {} // nothing may happen after the crash
}
