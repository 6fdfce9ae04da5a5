package httpapi

import (
	"cmp"
	"strings"

	"github.com/danielgtaylor/huma/v2"

	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/engine/event"
)

// operatorHeader is the header that Caller reads.
const operatorHeader = "X-Millrace-Operator"

// Caller is whoever sent a request. The recorded name is the one that authentication
// proved. Only without authentication does it come from the header.
type Caller struct {
	Operator string `header:"X-Millrace-Operator" maxLength:"100" doc:"The operator's name, which is recorded if there is no authentication. Defaults to http."`

	who string
}

// Resolve implements huma.Resolver.
func (c *Caller) Resolve(ctx huma.Context) []error {
	c.who = cmp.Or(IdentityOf(ctx.Context()).Who, strings.TrimSpace(c.Operator), "http")

	return nil
}

// WhyBody is a body with an optional reason.
type WhyBody struct {
	Why string `json:"why,omitempty" maxLength:"2000" doc:"The reason, which is recorded."`
}

// ReasonBody is a body with a required reason.
type ReasonBody struct {
	Why string `json:"why" minLength:"1" maxLength:"2000" doc:"The reason, which is recorded."`
}

func (c *Caller) actor(why string) activity.Actor {
	return activity.Actor{Who: c.who, Why: strings.TrimSpace(why), Request: event.NewID()}
}
