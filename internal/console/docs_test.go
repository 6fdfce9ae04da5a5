package console_test

import (
	"net/http"
	"strings"
	"testing"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func TestTheDocsShowTopicsAndTheHTTPAPI(t *testing.T) {
	t.Parallel()

	b := open(t)

	for path, says := range map[string][]string{
		"/docs/asyncapi":                               {"orders.created", "payments.refund.failed", "fulfilment.place"},
		"/docs/openapi":                                {"/api/v1/failed/edit", "Requires the role operator", "jq (body)"},
		"/console/docs/asyncapi":                       {`href="/console/docs/asyncapi"`},
		"/console/docs/asyncapi/orders.created":        {"order.items[].quantity", "at most 1000000000", "ce_id", "orders.created.items.v1", "data-copy"},
		"/console/docs/asyncapi/orders.cancel.refused": {"one of completed, inventory_unavailable"},
	} {
		p := b.get(path)
		for _, text := range says {
			if p.status != http.StatusOK || !strings.Contains(p.html, text) {
				t.Errorf("%s: got %d without %s", path, p.status, text)
			}
		}
	}

	for path, says := range map[string]string{"/console/docs/asyncapi.json": `"asyncapi": "3.0.0"`, "/console/docs/openapi.json": `"openapi": "3.1`} {
		if p := b.get(path); !strings.Contains(p.html, says) || !strings.Contains(p.header.Get("Content-Disposition"), "attachment") {
			t.Errorf("%s: got %v %.100s", path, p.header, p.html)
		}
	}

	if p := b.get("/console/docs/asyncapi/orders.creatd"); p.status != http.StatusUnprocessableEntity && p.status != http.StatusNotFound || !strings.Contains(p.html, "did you mean orders.created?") {
		t.Errorf("got %d %s", p.status, p.html)
	}
}

func TestAMessageIsTriedOut(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	b.Seed()

	operator, viewer := b.as(access.Operator), b.as(access.Viewer)

	const path = "/console/docs/asyncapi/orders.created"

	if p := operator.get(path); !strings.Contains(p.html, "Try it out") {
		t.Error("an operator cannot try it out")
	}

	if p := operator.get("/console/docs/asyncapi/orders.rejected"); strings.Contains(p.html, "Try it out") {
		t.Error("a topic without a consumer can be tried out")
	}

	if p := viewer.get(path); p.status != http.StatusOK || strings.Contains(p.html, "Try it out") {
		t.Errorf("a viewer may try it out: %d", p.status)
	}

	for _, to := range []string{path, path + "/check"} {
		if p := viewer.post(to, "payload", placed); p.status != http.StatusForbidden {
			t.Errorf("%s: a viewer got %d", to, p.status)
		}
	}

	const bad = `{"order":{"id":"<b>","product_id":"product_1","quantity":"two","total_amount":1}}`

	for to, status := range map[string]int{path: http.StatusUnprocessableEntity, path + "/check": http.StatusOK} {
		p := operator.post(to, "payload", bad)
		if p.status != status || !strings.Contains(p.html, "order.quantity: is a JSON string, expected a whole number") || strings.Contains(p.html, "<b>") {
			t.Errorf("%s: got %d %s", to, p.status, p.html)
		}
	}

	if p := operator.post(path+"/check", "payload", placed); !strings.Contains(p.html, "accept this payload") {
		t.Errorf("got %d %s", p.status, p.html)
	}

	if n := pgtest.Value[int](t, b.Pool, `SELECT count(*) FROM operator_actions WHERE action = 'published'`); n != 0 {
		t.Errorf("%d refused messages are recorded", n)
	}

	p := operator.post(path, "payload", placed, "why", "to see it")
	if p.status != http.StatusOK || p.url.Path != "/console/conversations" || p.url.Query().Get("id") == "" {
		t.Fatalf("got %d at %s", p.status, p.url)
	}

	if got := pgtest.Value[string](t, b.Pool, `SELECT concat_ws(' ', subject, who, why, message_id) FROM operator_actions WHERE action = 'published'`); got != "orders.created order_123 token:operator to see it "+p.url.Query().Get("id") {
		t.Errorf("recorded: %s", got)
	}

	b.WaitForOrder("order_123", "completed")
}

func TestWithoutTheConsoleThereAreNoDocs(t *testing.T) {
	t.Parallel()

	b := open(t, func(c *config.Config) { c.HTTP.Console = false })

	for _, path := range []string{"/docs/asyncapi", "/docs/openapi", "/console/docs/asyncapi"} {
		if p := b.get(path); p.status != http.StatusNotFound {
			t.Errorf("%s: got %d", path, p.status)
		}
	}
}
