//go:build tools

// Package kubernetes pins the control plane programs that `intervaljob dev` compiles where it cannot download them.
package kubernetes

import (
	_ "k8s.io/kubernetes/cmd/kube-apiserver"
	_ "k8s.io/kubernetes/cmd/kubectl"
)
