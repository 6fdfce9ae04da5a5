package httpapi

import (
	"cmp"
	"strings"

	"github.com/millracehq/millrace/internal/engine/activity"
)

// Caller is who sends a request. There is no authentication: the name is only
// recorded.
type Caller struct {
	Operator string `header:"X-Millrace-Operator" maxLength:"100" doc:"Who acts, for the record. Defaults to http."`
}

// WhyBody may give a reason.
type WhyBody struct {
	Why string `json:"why,omitempty" maxLength:"2000" doc:"The reason, for the record."`
}

// ReasonBody must give a reason.
type ReasonBody struct {
	Why string `json:"why" minLength:"1" maxLength:"2000" doc:"The reason, for the record."`
}

func (c Caller) actor(why string) activity.Actor {
	return activity.Actor{Who: cmp.Or(strings.TrimSpace(c.Operator), "http"), Why: strings.TrimSpace(why)}
}
