//go:build tools

// Package etcd pins the etcd server that `intervaljob dev` compiles where it cannot download it.
package etcd

import _ "go.etcd.io/etcd/server/v3"
