// Command millrace runs the service and operates on its data.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	_ "golang.org/x/crypto/x509roots/fallback" // root certificates for a container, which has none

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// version is set when the program is built: -ldflags "-X main.version=...".
var version = "dev"

func main() {
	stopping := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup ignores it
		stopping = append(stopping, syscall.SIGHUP)
	}

	ctx, stop := signal.NotifyContext(context.Background(), stopping...)

	go func() {
		<-ctx.Done()
		stop() // a second signal ends the process immediately
	}()

	os.Exit(execute(ctx, newRoot(os.Stdout, os.Stderr)))
}

// execute runs a command and returns its exit code.
func execute(ctx context.Context, root *cobra.Command) int {
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}

	root.PrintErrln("millrace:", scrub.Text(err.Error()))

	return operate.OutcomeOf(err).Exit
}

// Errors for commands that have already listed the messages.
var (
	errRejected = event.Errorf(event.Rejected, "some messages were rejected and not published")
	errRefused  = event.Errorf(event.Rejected, "some messages were refused and remain stopped")
	errLeft     = event.Errorf(event.Conflict, "some messages were left unchanged")
)
