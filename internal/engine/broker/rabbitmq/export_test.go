package rabbitmq

import "time"

// RenewAfter sets how long subscriptions get nothing until they are renewed.
func (d *Driver) RenewAfter(interval time.Duration) { d.renewAfter = interval }
