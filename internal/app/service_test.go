package app

import (
	"testing"

	"github.com/millracehq/millrace/internal/shop/order"
)

func TestANilDependencyIsRefused(t *testing.T) {
	t.Parallel()

	err := refuseNil(struct {
		Orders  *order.Service
		Gateway any
	}{Orders: &order.Service{}})
	if err == nil {
		t.Fatal("a nil dependency was accepted")
	}

	if err := refuseNil(Domains{}); err == nil || err.Error()[:len("app.Domains.Orders is nil: run make generate")] != "app.Domains.Orders is nil: run make generate" {
		t.Errorf("got %v", err)
	}
}
