#!/usr/bin/env bash
# Edit and run:   bash run_test.sh          (less than a minute on two cores, with the shipped weights)
set -eu
MODEL_PATH=${MODEL_PATH:-checkpoints/fashion_mnist.safetensors}  # or train_results/<name>/<name>.pt
DIGITS=checkpoints/digits.safetensors                            # scikit-learn has its real pictures: no download
SAMPLE_NUM=49                                                    # pictures
SEED=0
SAVE_DIR=results
# a checkpoint without a recipe needs --image_size, and may be given --image_channel, --training_timestep_num, --beta_schedule

# pictures out of noise, with two samplers: METHOD_STEPS_ETA
python test_solver.py --model_path "$MODEL_PATH" --test_mode random_gen \
    --sample_info DPMpp_10_0p0 DDIM_50_0p0 --sample_num $SAMPLE_NUM --seed $SEED --save_dir $SAVE_DIR

# the same noise through every method: which one needs how many steps?
python test_solver.py --model_path $DIGITS --test_mode compare --seed $SEED --save_dir $SAVE_DIR \
    --sample_info {NaiveDDPM,DDPM,DDIM,DPMpp}_{10,20,50}_0p0

# from one real picture to another, through noise
python test_solver.py --model_path $DIGITS --test_mode interpolate \
    --sample_info DDPM_100_0p0 --sample_num $SAMPLE_NUM --seed $SEED --save_dir $SAVE_DIR

# three ways to do so and one mistake, and how smoothly each goes
python test_solver.py --model_path $DIGITS --test_mode interpolate --interp_mode lerp slerp ddim redrawn \
    --sample_info DDIM_50_0p0 --sample_num $SAMPLE_NUM --seed $SEED --save_dir $SAVE_DIR

# how good are they?
python test_solver.py --model_path $DIGITS --test_mode evaluate --sample_num 300 --seed $SEED --save_dir $SAVE_DIR
