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

// Outcome is how an error reaches people.
type Outcome struct {
	// Name is the last part of the type of a problem (RFC 9457).
	Name string
	// Exit is the exit code of a command, Status that of an HTTP response.
	Exit, Status int
}

// outcomes is the one table of what errors mean outside.
var outcomes = map[event.Kind]Outcome{
	event.NotFound: {Exit: ExitNotFound, Status: http.StatusNotFound},
	event.Unknown:  {Exit: ExitUsage, Status: http.StatusNotFound},
	event.Conflict: {Exit: ExitFailure, Status: http.StatusConflict},
	event.Changed:  {Exit: ExitFailure, Status: http.StatusPreconditionFailed},
	event.Invalid:  {Exit: ExitUsage, Status: http.StatusUnprocessableEntity},
	Rejected:       {Exit: ExitRejected, Status: http.StatusUnprocessableEntity},
	unavailable:    {Exit: ExitFailure, Status: http.StatusServiceUnavailable},
	internal:       {Exit: ExitFailure, Status: http.StatusInternalServerError},
}

// Kinds that most errors do not carry themselves.
const (
	Rejected    event.Kind = "rejected"    // a consumer would reject the payload, or a message was refused
	unavailable event.Kind = "unavailable" // the database cannot be reached, or is too slow
	internal    event.Kind = "internal"    // anything else
)

// OutcomeOf returns what err means outside.
func OutcomeOf(err error) Outcome {
	kind := event.KindOf(err)

	if _, reject := errors.AsType[*event.RejectError](err); kind == "" && reject {
		kind = Rejected
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
