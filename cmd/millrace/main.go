// Command millrace runs the service and works on what it keeps.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/localpg"
)

// Exit codes, as `millrace help` lists them.
const (
	exitFailure  = operate.ExitFailure
	exitUsage    = operate.ExitUsage
	exitNotFound = operate.ExitNotFound
	exitRejected = operate.ExitRejected
)

// version is set when the program is built: -ldflags "-X main.version=...".
var version = "dev"

func main() {
	localpg.Reexec()

	stopping := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // as it is under nohup
		stopping = append(stopping, syscall.SIGHUP)
	}

	ctx, stop := signal.NotifyContext(context.Background(), stopping...)

	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process at once
	}()

	if err := newRoot().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "millrace:", err)
		os.Exit(exitCode(err))
	}
}

// usageError is a mistake in the arguments or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// notFoundError says that what was asked for is not there.
type notFoundError struct{ error }

func (e notFoundError) Unwrap() error { return e.error }

// errRejected says that publish refused some messages; it has told which.
var errRejected = errors.New("some messages were rejected and not published")

// errRefused says that requeue refused some entries; it has told which.
var errRefused = errors.New("some entries were refused and stay open")

func exitCode(err error) int {
	var (
		usage    usageError
		notFound notFoundError
	)

	switch {
	case errors.As(err, &usage):
		return exitUsage
	case errors.As(err, &notFound):
		return exitNotFound
	case errors.Is(err, errRejected), errors.Is(err, errRefused):
		return exitRejected
	default:
		return operate.OutcomeOf(err).Exit
	}
}
