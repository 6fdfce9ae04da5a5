package operate

import (
	"context"
	"errors"
	"net/http"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
)

// Exit codes of commands.
const (
	ExitFailure  = 1
	ExitUsage    = 2
	ExitNotFound = 3
	ExitRejected = 4
)

// ExitCodes says what each exit code means. The help and docs/operating.md print it.
var ExitCodes = []struct {
	Code    int
	Meaning string
}{
	{0, "done; for `status`, nothing needs attention"},
	{ExitFailure, "failed: Postgres or the service is unavailable, the current state does not allow the action, or the audit found violations; for `status`, something needs attention"},
	{ExitUsage, "usage error: an unknown command, flag or name, or an invalid configuration; nothing was changed"},
	{ExitNotFound, "not found: nothing has this id"},
	{ExitRejected, "some messages were rejected or refused; the others were processed"},
}

// Outcome is how an error is presented to users.
type Outcome struct {
	// Name is the last part of the problem type (RFC 9457).
	Name string
	// Exit is the exit code of a command, Status the HTTP status.
	Exit, Status int
}

// outcomes maps error kinds to outcomes.
var outcomes = map[event.Kind]Outcome{
	event.NotFound:  {Exit: ExitNotFound, Status: http.StatusNotFound},
	event.Unknown:   {Exit: ExitUsage, Status: http.StatusNotFound},
	event.Conflict:  {Exit: ExitFailure, Status: http.StatusConflict},
	event.Overtaken: {Exit: ExitFailure, Status: http.StatusConflict},
	event.KeyChange: {Exit: ExitFailure, Status: http.StatusConflict},
	event.Changed:   {Exit: ExitFailure, Status: http.StatusPreconditionFailed},
	event.Invalid:   {Exit: ExitUsage, Status: http.StatusUnprocessableEntity},
	event.Rejected:  {Exit: ExitRejected, Status: http.StatusUnprocessableEntity},
	unavailable:     {Exit: ExitFailure, Status: http.StatusServiceUnavailable},
	internal:        {Exit: ExitFailure, Status: http.StatusInternalServerError},
}

// Kinds that are assigned to errors without one.
const (
	unavailable event.Kind = "unavailable" // the database is unreachable or too slow
	internal    event.Kind = "internal"    // anything else
)

// OutcomeOf returns the outcome of err.
func OutcomeOf(err error) Outcome {
	kind := event.KindOf(err)

	if _, reject := errors.AsType[*event.RejectError](err); kind == "" && reject {
		kind = event.Rejected
	}

	if kind == "" {
		kind = internal

		if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || postgres.IsUnavailable(err) {
			kind = unavailable
		}
	}

	outcome := outcomes[kind]
	outcome.Name = string(kind)

	return outcome
}
