package httpapi

import (
	"cmp"
	"strings"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
)

// operatorHeader is the header of Caller.
const operatorHeader = "X-Millrace-Operator"

// Caller identifies the sender of a request. There is no authentication: the name is
// only recorded.
type Caller struct {
	Operator string `header:"X-Millrace-Operator" maxLength:"100" doc:"The operator's name, which is recorded. Defaults to http."`
}

// WhyBody is a body with an optional reason.
type WhyBody struct {
	Why string `json:"why,omitempty" maxLength:"2000" doc:"The reason, which is recorded."`
}

// ReasonBody is a body with a required reason.
type ReasonBody struct {
	Why string `json:"why" minLength:"1" maxLength:"2000" doc:"The reason, which is recorded."`
}

func (c Caller) actor(why string) activity.Actor {
	return activity.Actor{Who: cmp.Or(strings.TrimSpace(c.Operator), "http"), Why: strings.TrimSpace(why), Request: event.NewID()}
}
